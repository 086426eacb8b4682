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
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from hf_wsd.errors import CheckpointError, DataError
from hf_wsd.landscape import Floats, Mix
from hf_wsd.merge import Weights

SLICES = 8  # of the model, in which a larger output head is worked on
CHUNK = 1 << 16  # numbers of one tensor and checkpoint that are worked on at once


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

    def fill(self, tensor: torch.Tensor, key: str, mix: Mix) -> torch.Tensor:
        """The given tensor, with the values that one of this name has in a mix: summed in float64, chunk by chunk."""
        parts = [(self.weights[name].read(key).reshape(-1), weight) for name, weight in mix.items() if weight]
        flat = tensor.view(-1)
        for start in range(0, len(flat), CHUNK):
            chunk = slice(start, start + CHUNK)
            flat[chunk] = sum(values[chunk].double() * weight for values, weight in parts).to(tensor)
        return tensor

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


class _Inner(torch.autograd.Function):
    """The inner product of slopes with a way that is constant: neither is copied, and slopes are not kept."""

    @staticmethod
    def forward(context: Any, slopes: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(way)
        rows = max(1, CHUNK * max(1, len(slopes)) // max(1, slopes.numel()))
        parts = zip(slopes.split(rows), way.split(rows), strict=True)
        return torch.stack([(one * other).sum() for one, other in parts]).sum()  # MPS has no float64

    @staticmethod
    def backward(context: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        (way,) = context.saved_tensors
        return way if bool(outer[0] == 1) else outer[0] * way, None


class _Moved(torch.autograd.Function):
    """Weights + t * way at t = 0: the weights themselves, not a copy of them, with their derivative by t."""

    @staticmethod
    def forward(context: Any, weights: torch.Tensor, way: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(way)
        return weights.view_as(weights)

    @staticmethod
    def backward(context: Any, *slopes: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        (way,) = context.saved_tensors
        return None, None, _Inner.apply(torch.atleast_1d(slopes[0]), torch.atleast_1d(way))


class _Along(TorchFunctionMode):
    """A block in which every call takes weights + t * way for the weights.

    Each use of a tensor has a node of its own, made when it is used: so its slopes are computed when their turn comes,
    and let go. With one node for each tensor, made before, all slopes are kept to the end. The second derivative adds
    two slopes of a linear layer: a large one, such as an output head, is used in slices of 1 / SLICES of the model.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], way: Mapping[str, torch.Tensor], t: torch.Tensor) -> None:
        super().__init__()
        self._ways, self._t = {id(tensor): way[key] for key, tensor in weights.items()}, t
        self._most = sum(tensor.numel() for tensor in weights.values()) // SLICES

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        weight: Any = args[1] if func is linear and len(args) > 1 else None
        if id(weight) in self._ways and weight.numel() > self._most:
            return self._in_slices(*args, **(kwargs or {}))
        return func(*map(self._moved, args), **{name: self._moved(value) for name, value in (kwargs or {}).items()})

    def _in_slices(self, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows = max(1, self._most * len(weight) // weight.numel())
        slices = zip(weight.split(rows), self._ways[id(weight)].split(rows), strict=True)
        found = torch.cat([linear(given, _Moved.apply(part, way, self._t)) for part, way in slices], dim=-1)
        return found if bias is None else found + self._moved(bias)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(id(one) in self._ways for one in value):
            return type(value)(map(self._moved, value))
        return _Moved.apply(value, self._ways[id(value)], self._t) if id(value) in self._ways else value


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
            self.files.fill(tensor.data, key, point)

    def losses(self, point: Mix) -> list[float]:
        """The mean loss of each batch, in nats per token for a language model."""
        self.stand_at(point)
        with torch.no_grad():
            return self._shared(lambda batch: float(self.model(**batch).loss))

    def curvature(self, point: Mix, direction: Mix) -> list[float]:
        """The second derivative of each batch's loss along a direction: v H v, by a Hessian-vector product.

        The product is not kept: the loss is differentiated twice by t at weights + t v. Beside the model there are v
        and, while it is computed, the slopes of one tensor.
        """
        self.stand_at(point)
        way = {key: self.files.fill(torch.empty_like(t), key, direction) for key, t in self.state.items()}
        return self._shared(lambda batch: self._bend(batch, way))

    def _bend(self, batch: Mapping[str, torch.Tensor], way: Mapping[str, torch.Tensor]) -> float:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        t = torch.zeros((), device=self.device, requires_grad=True)
        with sdpa_kernel(SDPBackend.MATH), _Along(self.state, way, t):  # the fast ones have no second derivative
            loss = self.model(**batch).loss
        with sdpa_kernel(SDPBackend.MATH):
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
