"""How much of a checkpoint's run is the same in the run that goes on from it, and what may differ on the user's word.

- bitwise: nothing that is known differs.
- same samples: every update has the same samples, but is computed elsewhere or otherwise; only the rounding differs.
- changed: something that the model learns from, by name.

Whatever is changed has to be allowed by its name, in every run. A continued run may go on with the same samples and is
told so; a branch, which is to be what a straight run would have been, may not unless that is allowed too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from hf_wsd.errors import ResumeError, SettingsError, unknown
from hf_wsd.lineage import Lineage

BITWISE, SAME_SAMPLES, CHANGED = "bitwise", "same samples", "changed"
UNKNOWN = "unknown"  # no record to compare with, or a script that keeps the order of its data to itself
NAMES = {  # what `allow` takes: the level that a difference leaves, and what differs
    "learning_rate": (CHANGED, "peak lr of a parameter group"),
    "weight_decay": (CHANGED, "weight decay of a parameter group"),
    "betas": (CHANGED, "betas of AdamW and its like"),
    "eps": (CHANGED, "epsilon of the optimizer"),
    "optimizer": (CHANGED, "its class, or another of its settings"),
    "optimizer_state": (CHANGED, "it was not published: whoever gives rewarmup_steps has allowed it"),
    "max_grad_norm": (CHANGED, "norm to which gradients are clipped"),
    "label_smoothing_factor": (CHANGED, "of the loss"),
    "tokens_per_step": (CHANGED, "tokens (where they are not counted: samples) of an update over all processes"),
    "data": (CHANGED, "training set: its length, its block size, or one of sixteen samples"),
    "decay_data": (CHANGED, "data of the decay: whoever names some has allowed it"),
    "moved_data": (CHANGED, "spans of updates that `hf-wsd rewind` skips: whoever names them has allowed it"),
    "seed": (CHANGED, "order of the data, dropout"),
    "data_seed": (CHANGED, "order of the data"),
    "ignore_data_skip": (CHANGED, "the resumed epoch begins anew"),
    "dataloader_num_workers": (CHANGED, "of a stream, which workers read in parts"),
    "model": (CHANGED, "number of trainable parameters"),
    "precision": (CHANGED, "fp32, bf16 or fp16"),
    "per_device_train_batch_size": (SAME_SAMPLES, "with as many samples in an update"),
    "gradient_accumulation_steps": (SAME_SAMPLES, "with as many samples in an update"),
    "world_size": (SAME_SAMPLES, "processes, with as many samples in an update"),
    "device": (SAME_SAMPLES, "type and name"),
    "threads": (SAME_SAMPLES, "of each process, on CPU"),
    "torch_compile": (SAME_SAMPLES, "on or off"),
    "torch": (SAME_SAMPLES, "version"),
    "transformers": (SAME_SAMPLES, "version"),
    "accelerate": (SAME_SAMPLES, "version"),
    "push_every_save": (BITWISE, "Trainer's own pushes: every save, to main"),
}
_SAID_ALREADY = ("decay_data", "moved_data", "optimizer_state")
SHARING = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")


@dataclass(frozen=True, kw_only=True)
class Sameness:
    """What differs between a checkpoint's run and the one that goes on from it.

    Args:
        changes: "old -> new" by name, a key of `NAMES`.

    >>> sameness = Sameness(changes={"world_size": "2 -> 1", "seed": "1 -> 2"})
    >>> sameness.level, sameness.to_allow("continue"), sameness.to_allow("branch")
    ('changed', ['seed'], ['world_size', 'seed'])
    """

    changes: Mapping[str, str] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """ "bitwise", "same samples" or "changed"."""
        return _level(self.changes)

    def __or__(self, other: Sameness) -> Sameness:
        both = {**self.changes, **other.changes}
        return Sameness(changes={name: both[name] for name in NAMES if name in both})

    def to_allow(self, intent: str) -> list[str]:
        """The names that have to be allowed in a run of that intent."""
        strict = intent == "branch"
        return [name for name in self.changes if name not in _SAID_ALREADY and (strict or NAMES[name][0] == CHANGED)]

    def check(self, intent: str, *, step: int, allow: Iterable[str]) -> None:
        """Refuse a run with differences that nobody has allowed.

        Args:
            intent: "start", "continue", "branch" or "extend".
            step: of the checkpoint.
            allow: names of differences that are meant.

        Raises:
            ResumeError: something differs that is not allowed; the message has all that differs, and all to allow.
        """
        names = self.to_allow(intent)
        if set(names) <= set(allow):
            return
        differences = "".join(f"\n  {name} {change}" for name, change in self.changes.items())
        words = " ".join(names)
        raise ResumeError(
            f"the run differs from that of its checkpoint at step {step} (checkpoint -> now):{differences}\n"
            f"Give what the checkpoint was trained with. Or, if this is meant, repeat with --allow {words} (a flag of "
            f"`python -m hf_wsd` and of `hf-wsd decay`). Other ways to say it: HF_WSD_ALLOW='{words}', \"allow\" in "
            "lr_scheduler_kwargs, WSDCallback(allow=[...])"
        )

    def record(
        self, earlier: Mapping[str, Any], *, step: int, allow: Iterable[str], known: bool = True
    ) -> dict[str, Any]:
        """What the records of the run say of it: `level`, `changes` and what was `allowed`, those of earlier jobs too.

        Args:
            earlier: the same of the checkpoint's record, where this run is that one.
            step: of the checkpoint.
            allow: names of differences that are meant.
            known: whether the order of the samples is known.

        >>> first = Sameness(changes={"world_size": "2 -> 1"}).record({}, step=80, allow=[])
        >>> Sameness(changes={"seed": "1 -> 2"}).record(first, step=90, allow=["seed", "data"])["changes"]
        {'world_size': '2 -> 1 at step 80', 'seed': '1 -> 2 at step 90'}
        """
        changes = dict(earlier.get("changes", {}))
        for name, change in self.changes.items():
            changes[name] = ", ".join([*filter(None, [changes.get(name)]), f"{change} at step {step}"])
        allowed = {*earlier.get("allowed", ()), *(set(allow) & self.changes.keys())}
        level = _level(changes)
        return {
            "level": level if known or level == CHANGED else UNKNOWN,
            "changes": changes,
            "allowed": sorted(allowed),
        }

    def __str__(self) -> str:
        return ", ".join(f"{name} {change}" for name, change in self.changes.items())


def _level(names: Iterable[str]) -> str:
    levels = {NAMES[name][0] for name in names if name in NAMES}
    return next((level for level in (CHANGED, SAME_SAMPLES) if level in levels), BITWISE)


def check_names(names: Iterable[str]) -> frozenset[str]:
    """The names as a set.

    Raises:
        SettingsError: a name that does not exist.

    >>> check_names(["learning_rat"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    hf_wsd.errors.SettingsError: unknown difference in allow 'learning_rat': did you mean 'learning_rate'? Known: ...
    """
    for name in names:
        if name not in NAMES:
            raise SettingsError(unknown("difference in allow", name, NAMES))
    return frozenset(names)


def compare(before: Lineage, now: Lineage) -> Sameness:
    """What differs between the run of a checkpoint and the run that goes on from it, as far as both records tell.

    With another number of processes but as many samples in an update, an epoch's last update may still have others
    than before where the epoch is no multiple of them: accelerate fills it up.

    >>> from hf_wsd.builders import wsd
    >>> def run(batch, processes):
    ...     setup = dict(zip(SHARING, (batch, 1, processes)))
    ...     return Lineage(step=80, kind="fork", schedule=wsd(100), setup=setup)
    >>> print(compare(run(8, 1), run(4, 2)))
    per_device_train_batch_size 8 -> 4, world_size 1 -> 2
    >>> print(compare(run(4, 2), run(4, 4)))
    tokens_per_step 8 -> 16 samples (world_size 2 -> 4)
    """
    old, new = _facts(before), _facts(now)
    found = {name: f"{old[name]} -> {new[name]}" for name in NAMES if name in old and name in new}
    found = {name: change for name, change in found.items() if old[name] != new[name]}
    if before.peak_lrs and now.peak_lrs:
        found |= changed_lrs(before.peak_lrs, now.peak_lrs)
    if "world_size" in found:
        found.pop("model", None)  # FSDP counts the parameters of one process
    if "data" in old and "data" in new:
        found.pop("dataloader_num_workers", None)  # only a stream depends on them
    if before.decay_data != now.decay_data:
        found.pop("data", None)
        found["decay_data"] = " -> ".join(", ".join(one.decay_data) or "the trunk's" for one in (before, now))
    if before.moved_data != now.moved_data:
        found.pop("data", None)
        found["moved_data"] = " -> ".join(str(list(one.moved_data)) for one in (before, now))
    sharing = {name: found.pop(name) for name in SHARING if name in found}
    if sharing:
        found |= _shared_otherwise(sharing, old, new)
    return Sameness(changes={name: found[name] for name in NAMES if name in found})


def _facts(record: Lineage) -> dict[str, Any]:
    """What is known of a run, by name."""
    facts = {name: value for name, value in record.setup.items() if value is not None or name == "data_seed"}
    facts |= record.versions
    if record.data != UNKNOWN:
        facts["data"] = record.data
    counts = {"tokens_per_step": record.tokens_per_step, "model": record.parameters}
    return facts | {name: value for name, value in counts.items() if value is not None}


def _shared_otherwise(sharing: Mapping[str, str], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Batch, accumulation and processes: by themselves if an update has as many samples, else a change of those."""
    before, now = _samples(old), _samples(new)
    tokens = old.get("tokens_per_step"), new.get("tokens_per_step")
    if before == now if before and now else tokens[0] is not None and tokens[0] == tokens[1]:
        return dict(sharing)
    if None not in tokens and tokens[0] != tokens[1]:
        size = f"{tokens[0]} -> {tokens[1]}"
    else:
        size = f"{before or 'unknown'} -> {now or 'unknown'} samples"
    parts = ", ".join(f"{name} {change}" for name, change in sharing.items())
    return {"tokens_per_step": f"{size} ({parts})"}


def _samples(facts: Mapping[str, Any]) -> int | None:
    parts = [part for name in SHARING if isinstance(part := facts.get(name), int)]
    return prod(parts) if len(parts) == len(SHARING) else None


def changed_lrs(before: Sequence[float], now: Sequence[float]) -> dict[str, str]:
    """What differs between the peak lrs of each parameter group, as `Sameness` has it.

    >>> changed_lrs([0.1, 0.1], [0.2, 0.2]), changed_lrs([0.1], [0.1])
    ({'learning_rate': '0.1 -> 0.2'}, {})
    """
    if len(before) != len(now):
        return {"learning_rate": f"{show_lrs(before)} -> {show_lrs(now)}"}
    pairs = dict.fromkeys(f"{old} -> {new}" for old, new in zip(before, now, strict=True) if old != new)
    return {"learning_rate": ", ".join(pairs)} if pairs else {}


def show_lrs(lrs: Sequence[float]) -> str:
    """The lr of each parameter group.

    >>> show_lrs([0.1, 0.2])
    '0.1, 0.2'
    """
    return ", ".join(map(str, lrs))


def describe(record: Lineage) -> str:
    """How the run of a record differs from that of the checkpoint it left, in a few words; "" where it does not.

    >>> from hf_wsd.builders import wsd
    >>> sameness = {"level": "changed", "changes": {"learning_rate": "0.01 -> 0.005 at step 80"}, "allowed": []}
    >>> describe(Lineage(step=90, kind="end", schedule=wsd(100), sameness=sameness))
    'changed: learning_rate'
    """
    if record.sameness.get("level") == UNKNOWN:
        return "sameness unknown"
    changes = [name for name in record.sameness.get("changes", {}) if name != "decay_data"]  # a straight run has it too
    return f"{_level(changes)}: {', '.join(changes)}" if changes else ""
