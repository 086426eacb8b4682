"""The loss, and its curvature, at any mix of checkpoints. Memory: the model, and for curvature two more copies of it.

Tensors are read one at a time from the checkpoints' files, which stay on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from hf_wsd.errors import CheckpointError, DataError
from hf_wsd.landscape import Floats, Mix
from hf_wsd.merge import Weights

CHUNK = 1 << 20  # numbers of one tensor and checkpoint that are compared at once


class Files(AbstractContextManager["Files"]):
    """The open weight files of checkpoints, by name."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._stack = ExitStack()
        try:
            self.weights = {name: Weights(path, self._stack) for name, path in paths.items()}
            first, *others = self.weights.values()
            for other in others:
                if odd := sorted(set(first.files) ^ set(other.files)):
                    raise CheckpointError(f"{other.checkpoint} has other tensors than {first.checkpoint}: {odd[:5]}")
        except BaseException:
            self._stack.close()
            raise
        self.tensors = sorted(key for key in first.files if first.read(key).is_floating_point())

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def mixed(self, key: str, mix: Mix) -> torch.Tensor:
        """One tensor of a mix, summed in float64 and given in float32."""
        return sum(self.weights[name].read(key).double() * weight for name, weight in mix.items() if weight).float()

    def gram(self) -> tuple[Floats, dict[str, str]]:
        """Inner products of (checkpoint - first checkpoint), [n, n]; and a mark of each checkpoint's weights.

        Raises:
            CheckpointError: a checkpoint has weights that are no numbers, or tensors of another shape.
        """
        count = len(self.weights)
        total, norms = np.zeros((count, count)), np.zeros(count)
        for rows in self._chunks():
            norms += (rows * rows).sum(axis=1)
            rows -= rows[0].copy()
            total += rows @ rows.T
        for name, norm in zip(self.weights, norms, strict=True):
            if not np.isfinite(norm):
                raise CheckpointError(f"{self.weights[name].checkpoint} has weights that are no numbers: it diverged")
        return total, {name: f"{norm:.12e}" for name, norm in zip(self.weights, norms, strict=True)}

    def _chunks(self) -> Iterator[Floats]:
        """Pieces of all checkpoints, [n, numbers]: together at most half a copy of the model, in float64."""
        size = sum(next(iter(self.weights.values())).read(key).numel() for key in self.tensors)
        step = max(1, min(CHUNK, size // (4 * len(self.weights))))
        for key in self.tensors:
            flat = [weights.read(key).reshape(-1) for weights in self.weights.values()]
            if len({len(one) for one in flat}) > 1:
                raise CheckpointError(
                    f"{key} has another shape in some checkpoints: {[len(one) for one in flat]} numbers"
                )
            for start in range(0, len(flat[0]), step):
                yield np.stack([one[start : start + step].to(torch.float64).numpy() for one in flat])


class _Moved(torch.autograd.Function):
    """Weights + t * way at t = 0: the weights themselves, not a copy of them, with their derivative by t."""

    @staticmethod
    def forward(context: Any, weights: torch.Tensor, way: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(way)
        return weights.view_as(weights)

    @staticmethod
    def backward(context: Any, *slopes: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        (way,) = context.saved_tensors
        return None, None, torch.dot(slopes[0].reshape(-1), way.reshape(-1))


class Terrain:
    """Loss and curvature of a model at mixes of checkpoints, always on the same batches.

    Args:
        model: any of transformers, whose output has the `loss` of a batch. Its weights are overwritten, in float32;
            dropout is off.
        batches: of evaluation data, as the model takes them; their losses weigh as their rows.
        files: of the checkpoints.
        accelerator: several devices share the batches; None computes where the model is.

    Raises:
        CheckpointError: the files have tensors that the model has not.
        DataError: no batch.
    """

    def __init__(
        self, model: Any, batches: Iterable[Mapping[str, torch.Tensor]], files: Files, accelerator: Any = None
    ) -> None:
        self.accelerator, self.files = accelerator, files
        self.device = accelerator.device if accelerator else next(model.parameters()).device
        self.model = model.to(self.device, torch.float32).eval().requires_grad_(False)
        self.batches = list(batches)
        if not self.batches:
            raise DataError("no evaluation data: the landscape needs at least one block")
        self.rows = np.array([len(next(iter(batch.values()))) for batch in self.batches], dtype=float)
        state = self.model.state_dict(keep_vars=True)
        if odd := [key for key in files.tensors if key not in state]:
            raise CheckpointError(f"the checkpoints have tensors that {type(model).__name__} has not: {odd[:5]}")
        self.state = {key: state[key] for key in files.tensors}

    @property
    def mark(self) -> str:
        """A fingerprint of the evaluation data and of how they are batched."""
        found = sha256()
        for batch in self.batches:
            for key in sorted(batch):
                found.update(key.encode() + batch[key].cpu().numpy().tobytes())
        return found.hexdigest()[:16]

    def stand_at(self, point: Mix) -> None:
        """Give the model the weights of a mix."""
        for key, tensor in self.state.items():
            tensor.data.copy_(self.files.mixed(key, point).view_as(tensor))

    def losses(self, point: Mix) -> list[float]:
        """The mean loss of each batch, in nats per token for a language model."""
        self.stand_at(point)
        with torch.no_grad():
            return self._shared(lambda batch: float(self.model(**batch).loss))

    def curvature(self, point: Mix, direction: Mix) -> list[float]:
        """The second derivative of each batch's loss along a direction: v H v, by a Hessian-vector product.

        The product is not kept: the loss is differentiated twice by t at weights + t v. Beside the model there are v
        and, while it is computed, the slopes.
        """
        self.stand_at(point)
        way = {key: self.files.mixed(key, direction).view_as(t).to(self.device) for key, t in self.state.items()}
        return self._shared(lambda batch: self._bend(batch, way))

    def _bend(self, batch: Mapping[str, torch.Tensor], way: Mapping[str, torch.Tensor]) -> float:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        t = torch.zeros((), device=self.device, requires_grad=True)
        moved = {key: _Moved.apply(tensor, way[key], t) for key, tensor in self.state.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the fast ones have no second derivative
            loss = functional_call(self.model, moved, (), dict(batch)).loss
            del moved
            (slope,) = torch.autograd.grad(loss, t, create_graph=True)
            (bend,) = torch.autograd.grad(slope, t)
        return float(bend)

    def _shared(self, measure: Any) -> list[float]:
        """A number for each batch, computed by the processes in turn."""
        rank, world = (self.accelerator.process_index, self.accelerator.num_processes) if self.accelerator else (0, 1)
        found = torch.zeros(len(self.batches), dtype=torch.float64)
        for at in range(rank, len(self.batches), world):
            found[at] = measure({key: value.to(self.device) for key, value in self.batches[at].items()})
        if world > 1:
            found = self.accelerator.reduce(found.to(self.device, torch.float32), reduction="sum").double().cpu()
        return [float(value) for value in found]


def batches_of(blocks: Sequence[Mapping[str, torch.Tensor]], *, count: int, size: int) -> list[dict[str, torch.Tensor]]:
    """Evenly spaced blocks in batches.

    Args:
        blocks: rows of tensors of equal length, such as recipes/blocks.py makes.
        count: blocks to take; of fewer, all.
        size: blocks in a batch.
    """
    chosen = [blocks[int(at)] for at in np.linspace(0, len(blocks) - 1, min(count, len(blocks)), dtype=int)]
    rows = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return [{key: torch.stack([row[key] for row in part]) for key in part[0]} for part in rows]


def mark_of(mix: Mix, marks: Mapping[str, str], *more: str) -> str:
    """A name for a measurement that stays the same in a repeated command.

    Args:
        mix: of the point, or of the direction.
        marks: of the checkpoints' weights.
        more: what else it depends on.
    """
    parts = sorted((marks[name], f"{weight:.12e}") for name, weight in mix.items() if weight)
    return sha256(json.dumps([parts, *more]).encode()).hexdigest()[:20]
