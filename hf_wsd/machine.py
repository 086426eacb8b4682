"""What a run computes on, as far as its bits depend on it."""

from __future__ import annotations

from typing import Any

import torch


def machine_setup(device: torch.device, *, main: bool) -> dict[str, Any]:
    """The device by type and name; on CPU, where the bits depend on it, the number of threads too.

    Only of the main process, for the others may have other devices: the record, with which it is compared, is its own.
    A CPU goes by the instructions that torch uses there: `cpu AVX2`, `cpu AVX512`.
    """
    if not main:
        return {}
    if device.type == "cpu":
        return {"device": f"cpu {torch.backends.cpu.get_cpu_capability()}", "threads": torch.get_num_threads()}
    return {"device": f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type}
