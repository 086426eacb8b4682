"""Every random generator of a process as one value, to be put back after work that must not change training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Randomness:
    """The states of python's, numpy's, torch's and the accelerators' generators.

    >>> before = Randomness.now(); a = torch.rand(1); before.restore(); bool(torch.rand(1) == a)
    True
    """

    python: Any
    numpy: Any
    torch: torch.Tensor
    devices: dict[str, Any]

    @classmethod
    def now(cls) -> Randomness:
        """The current states."""
        devices: dict[str, Any] = {}
        if torch.cuda.is_available():
            devices["cuda"] = torch.cuda.get_rng_state_all()
        if torch.backends.mps.is_available():
            devices["mps"] = torch.mps.get_rng_state()
        if hasattr(torch, "xpu") and torch.xpu.is_available():
            devices["xpu"] = torch.xpu.get_rng_state_all()
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), devices)

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        for name, state in self.devices.items():
            module = getattr(torch, name)
            (module.set_rng_state if name == "mps" else module.set_rng_state_all)(state)


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """A block after which every generator is where it was before."""
    before = Randomness.now()
    try:
        yield
    finally:
        before.restore()


def start_workers_unseen(loader: Any) -> None:
    """Have a DataLoader's persistent workers start without the random number that this draws.

    An uninterrupted run draws it in its first epoch and keeps its workers; a resumed run starts them in a later one.
    """
    base = getattr(loader, "base_dataloader", loader)  # behind accelerate's
    if getattr(base, "persistent_workers", False) and base._iterator is None:

        def unseen() -> Any:
            del base._get_iterator  # back to the class's own
            with unchanged_randomness():
                return base._get_iterator()

        base._get_iterator = unseen
