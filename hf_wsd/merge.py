"""A preview of a decay without training: the trunk's checkpoints, merged with the weights that imitate its shape.

A decay scales the update made after checkpoint j by a multiplier w_j. The sum over the checkpoints with c_0 = 1 - w_1,
c_j = w_j - w_(j+1), c_k = w_k scales the updates that the trunk made at its peak in the same way (WSM, arXiv
2507.17634). It is no decayed model: the trunk made its updates where a decay would not have been.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.decision import decay_shape
from hf_wsd.errors import CheckpointError, ForkError, RecordError, RunError
from hf_wsd.family import Run
from hf_wsd.history import to_json, write_atomically
from hf_wsd.lengths import Length, decay_length, to_steps
from hf_wsd.lock import locked
from hf_wsd.plan import Decay, branch_name
from hf_wsd.segment import Phase, Segment

if TYPE_CHECKING:
    import torch

MERGED = "_merged"  # the leading underscore keeps it out of Trainer's uploads
MERGE = "merge.json"
FEWEST = 3  # of two checkpoints no shape can be told from another
_MODEL = ("config.json", "generation_config.json", "*processor_config.json", "tokenizer*", "*.jinja", "vocab.*")
_MODEL_TOO = ("merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
_CARD = """# A preview, not a decayed model

The weighted mean of {count} checkpoints of a trunk (steps {first} to {last}) that imitates a {shape} decay from step
{fork} to step {end} (WSM, arXiv 2507.17634). Nothing was trained; `hf-wsd decay` trains the decay itself.
"""


def merge_coefficients(steps: Sequence[int], decay: Segment, *, fork: int = 0) -> tuple[float, ...]:
    """The weight of each checkpoint in a merge that imitates a decay; they sum to 1.

    WSM (arXiv 2507.17634): c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k, where w_j is the multiplier of the updates
    between checkpoints j - 1 and j: that of the first of them. A linear decay to 0 weights each checkpoint by the steps
    before it; at equal distances that is the plain mean.

    Args:
        steps: of the checkpoints, rising, within the decay. They need not be evenly spaced.
        decay: from multiplier 1.
        fork: the step at which it starts.

    Raises:
        ForkError: the steps do not rise, or lie outside the decay.

    >>> merge_coefficients([70, 80, 90, 100], Segment.decay(40, shape="linear"), fork=60)
    (0.25, 0.25, 0.25, 0.25)
    >>> merge_coefficients([80, 100], Segment.decay(40, shape="linear", end=0.5), fork=60)
    (0.25, 0.75)
    """
    end = fork + (decay.steps or 0)
    if not steps or any(before >= after for before, after in pairwise([fork - 1, *steps, end + 1])):
        raise ForkError(f"checkpoints at steps {list(steps)} must rise and lie within the decay, steps {fork} to {end}")
    multipliers = [1.0, *(decay.multiplier(step - fork) for step in steps[:-1]), 0.0]
    return tuple(before - after for before, after in pairwise(multipliers))


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Which checkpoints of a run are merged, and how.

    Args:
        run: the run's folder.
        decay: what is imitated: where it would leave the trunk, and where its model would end.
        shape: of the decay, from multiplier 1.
        checkpoints: folders by step, those without weight left out.
        coefficients: weight of each.
    """

    run: Path
    decay: Decay
    shape: Segment
    checkpoints: Mapping[int, Path]
    coefficients: tuple[float, ...]

    @property
    def name(self) -> str:
        """Its folder's name: that of the branch which it imitates."""
        return branch_name(self.decay, self.shape.shape, dict(self.shape.shape_params))

    @property
    def folder(self) -> Path:
        """Where the merged model is."""
        return self.run / MERGED / (self.name if self.shape.end == 0 else f"{self.name}-to-{self.shape.end:g}")

    def to_dict(self) -> dict[str, Any]:
        """What `merge.json` says of it before it is evaluated."""
        return {
            "preview": True,
            "fork": self.decay.fork,
            "end": self.decay.end,
            "decay_type": self.shape.shape,
            "decay": self.shape.to_dict(),
            "checkpoints": list(self.checkpoints),
            "coefficients": list(self.coefficients),
            "source": "WSM, arXiv 2507.17634",
        }


def plan_merge(
    run: Run,
    at: int | str,
    *,
    num_decay_steps: int | str | None = None,
    decay_fraction: float | None = None,
    decay_type: str | None = None,
    decay_params: Mapping[str, float] | None = None,
    min_lr_ratio: float | None = None,
) -> Merge:
    """The merge that imitates a decay of a trunk; what is not given is as in `hf-wsd decay`.

    Args:
        run: the trunk.
        at: where the decay would end: steps, or a length such as "1.6M".
        num_decay_steps, decay_fraction: length of the decay: the window of which the checkpoints are taken.
        decay_type, decay_params, min_lr_ratio: its shape.

    Raises:
        ForkError: an update of the window that is not stable, or fewer than three checkpoints in the window.
    """
    latest = run.latest
    if num_decay_steps is None and decay_fraction is None:
        num_decay_steps, decay_fraction = (latest.settings.get(n) for n in ("num_decay_steps", "decay_fraction"))
    end = int(to_steps(str(at), tokens_per_step=latest.tokens_per_step))
    length = to_steps(num_decay_steps, tokens_per_step=latest.tokens_per_step, of=end)
    asked = Length(str(at))
    steps = decay_length(end, num_decay_steps=length, decay_fraction=decay_fraction)
    decay = Decay(fork=end - steps, end=end, requested=asked if asked.tokens else None)
    found = decay_shape(
        latest.schedule, latest.settings, decay_type=decay_type, decay_params=decay_params, min_lr_ratio=min_lr_ratio
    )
    shape = Segment.decay(decay.steps, shape=found["shape"], end=found["final"], params=found["params"])
    _refuse_unstable(run, decay)
    there = {step: path for step, path in run.checkpoints.items() if decay.fork <= step <= end}
    weights = merge_coefficients(list(there), shape, fork=decay.fork) if there else ()
    coefficients = {step: weight for step, weight in zip(there, weights, strict=True) if weight}
    if len(coefficients) < FEWEST or end - max(coefficients) > max(after - b for b, after in pairwise(coefficients)):
        raise ForkError(_too_few(run, decay, list(coefficients)))
    checkpoints = {step: there[step] for step in coefficients}
    return Merge(
        run=run.path, decay=decay, shape=shape, checkpoints=checkpoints, coefficients=tuple(coefficients.values())
    )


def _refuse_unstable(run: Run, decay: Decay) -> None:
    """A window in which the lr was not at one peak: its updates are not those that the formula scales."""
    schedule = run.latest.schedule
    for start, stop, segment in schedule.spans():
        inside = start < decay.end and (stop is None or stop > decay.fork)
        if inside and (segment.phase is not Phase.STABLE or start > decay.fork):
            raise ForkError(
                f"cannot merge steps {decay.fork} to {decay.end}: the {segment.phase.value} phase from step {start} is "
                "among them, and a merge imitates a decay from the stable phase: give another --at, or a shorter decay"
            )


def _too_few(run: Run, decay: Decay, there: list[int]) -> str:
    every = max(decay.steps // 8, 1)
    kept = ", ".join(map(str, there)) or "none"
    return (
        f"a merge needs at least {FEWEST} checkpoints from step {decay.fork + 1} to {decay.end}, the last of them near "
        f"the end, and {run.path} has {kept}: train with --keep-every {every} (recipes: --keep_every {every}), which "
        "keeps eight there, or give another --at or a longer --decay-steps"
    )


def is_merged(merge: Merge) -> bool:
    """Whether this very merge has been written: its folder is renamed into place when it is whole."""
    try:
        told = json.loads((merge.folder / MERGE).read_text())
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise RecordError(f"{merge.folder / MERGE} cannot be read ({error}): delete the folder and repeat") from error
    wanted = json.loads(to_json(merge.to_dict()))
    return bool(isinstance(told, dict) and all(told.get(name) == value for name, value in wanted.items()))


def write_merge(merge: Merge) -> Path:
    """Write the merged model, with config, tokenizer and `merge.json`, whole or not at all; returns its folder.

    Raises:
        CheckpointError: a checkpoint is damaged, has other tensors than the others, or weights that are no numbers.
        RunError: the folder cannot be written.
    """
    merge.folder.parent.mkdir(exist_ok=True)
    new = merge.folder.with_name(f".{merge.folder.name}.new")
    with locked(merge.folder.parent):
        try:
            shutil.rmtree(new, ignore_errors=True)  # what a kill has left
            new.mkdir()
            _write_weights(merge, new / "model.safetensors")
            _copy_model_files(merge, new)
            (new / "README.md").write_text(_card(merge), encoding="utf-8")
            write_atomically(new / MERGE, to_json(merge.to_dict(), indent=1) + "\n")
            shutil.rmtree(merge.folder, ignore_errors=True)  # of other checkpoints
            new.rename(merge.folder)
        except OSError as error:
            raise RunError(f"the merge cannot be written into {merge.folder}: {error}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return merge.folder


def _card(merge: Merge) -> str:
    steps, decay = list(merge.checkpoints), merge.decay
    window = {"count": len(steps), "first": steps[0], "last": steps[-1], "fork": decay.fork, "end": decay.end}
    return _CARD.format(shape=merge.shape.shape, **window)


def _copy_model_files(merge: Merge, folder: Path) -> None:
    """Config and tokenizer, from the last checkpoint or, where it has none, from the run's folder."""
    for home in (merge.run, merge.checkpoints[max(merge.checkpoints)]):
        for file in (file for pattern in (*_MODEL, *_MODEL_TOO) for file in home.glob(pattern) if file.is_file()):
            shutil.copy2(file, folder / file.name)
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"neither {merge.run} nor its checkpoints have a config.json, without which a merge cannot be loaded: save "
            "the model's config there"
        )


def _write_weights(merge: Merge, file: Path) -> None:
    """The merged tensors: one copy of the model, one tensor in float64 and one that is read."""
    from safetensors.torch import save_file

    with ExitStack() as stack:
        opened = [Weights(path, stack) for path in merge.checkpoints.values()]
        names = set(opened[-1].files)
        for weights in opened[:-1]:
            if odd := sorted(names ^ set(weights.files)):
                raise CheckpointError(f"{weights.checkpoint} has other tensors than {opened[-1].checkpoint}: {odd[:5]}")
        merged = dict(_merged(opened, merge.coefficients))
        save_file(merged, file, metadata={"format": "pt"})


def _merged(opened: Sequence[Weights], coefficients: Sequence[float]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in sorted(opened[-1].files):
        last = opened[-1].read(name)
        if last.is_floating_point():
            total = last.double() * coefficients[-1]
            for weights, coefficient in zip(opened[:-1], coefficients[:-1], strict=True):
                tensor = weights.read(name)
                if tensor.shape != last.shape:
                    raise CheckpointError(f"{name} of {weights.checkpoint} is {list(tensor.shape)}, {list(last.shape)}")
                total.add_(tensor.double(), alpha=coefficient)
            if not total.isfinite().all():
                raise CheckpointError(f"{name} has weights that are no numbers in one of the checkpoints: it diverged")
            last = total.to(last.dtype)
        yield name, last.contiguous()  # counts and masks are the last checkpoint's


class Weights:
    """The tensors of a checkpoint, read one at a time, from one safetensors file, several, or FSDP's shards."""

    def __init__(self, checkpoint: Path, stack: ExitStack) -> None:
        from safetensors import safe_open

        check_checkpoint(checkpoint, to_resume=False)
        self.checkpoint, files = checkpoint, sorted(checkpoint.glob("model*.safetensors"))
        if not files and (shards := checkpoint / "pytorch_model_fsdp_0").is_dir():
            from accelerate.utils import merge_fsdp_weights

            whole = stack.enter_context(TemporaryDirectory(prefix="hf_wsd-merge-"))
            merge_fsdp_weights(str(shards), whole, safe_serialization=True)
            files = sorted(Path(whole).glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{checkpoint} has no weights in safetensors files, nor FSDP's sharded ones")
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        self.files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - no dictionary

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        tensor: torch.Tensor = self.files[name].get_tensor(name)
        return tensor
