"""Two checkpoints in bits: the same weights, or how far apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from hf_wsd.errors import CheckpointError

Weights = dict[str, Callable[[], torch.Tensor]]  # read one by one: two large models need not fit into memory


def difference(one: Path, other: Path) -> float | None:
    """The largest |difference| of the weights in two checkpoints; None where every bit is the same.

    Raises:
        CheckpointError: they have no weights, or not the same ones.
    """
    a, b = read_weights(one), read_weights(other)
    if a.keys() != b.keys():
        raise CheckpointError(f"{one} and {other} hold different weights: {', '.join(sorted(a.keys() ^ b.keys()))}")
    found = [apart for name in a if (apart := _apart(a[name](), b[name]())) is not None]
    return max(found, default=None)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float | None:
    if a.shape != b.shape:
        raise CheckpointError(f"a weight has the shape {tuple(a.shape)} in one run and {tuple(b.shape)} in the other")
    if a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
        return None
    return float((a.double() - b.double()).abs().max())


def read_weights(checkpoint: Path) -> Weights:
    """The weights of a checkpoint by name: Trainer's own, a LoRA adapter's, or FSDP's shards.

    Raises:
        CheckpointError: there are none.
    """
    if files := sorted(checkpoint.glob("*.safetensors")):
        opened = [safe_open(file, "pt") for file in files]
        return {name: partial(file.get_tensor, name) for file in opened for name in file.keys()}  # noqa: SIM118
    if (shards := checkpoint / "pytorch_model_fsdp_0").is_dir():
        with TemporaryDirectory(dir=checkpoint.parent) as folder:
            dcp_to_torch_save(shards, Path(folder) / "all.pt")
            weights = torch.load(Path(folder) / "all.pt", weights_only=True)["model"]
        return {name: partial(torch.Tensor.contiguous, value) for name, value in weights.items()}
    raise CheckpointError(f"{checkpoint} holds no weights that can be compared (*.safetensors, pytorch_model_fsdp_0/)")
