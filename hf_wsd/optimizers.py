"""The settings of an optimizer, in a checkpoint and in the run that goes on from it: torch takes the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_wsd.errors import ResumeError
from hf_wsd.sameness import NAMES, Sameness, changed_lrs, show_lrs

Settings = Sequence[Mapping[str, Any]]  # a parameter group each
_NOT_COMPARED = {  # the lr is the schedule's; ways to compute the same stay the checkpoint's
    *("params", "param_names", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"),
}


def optimizer_settings(groups: Iterable[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The settings of each parameter group that make another model, JSON-ready; `kind` is the optimizer's class.

    >>> optimizer_settings([{"params": [], "lr": 0.1, "betas": (0.9, 0.95), "fused": True}], "AdamW")
    [{'class': 'AdamW', 'betas': [0.9, 0.95]}]
    """

    def plain(group: Mapping[str, Any]) -> dict[str, Any]:
        known = {key: group[key] for key in group.keys() - _NOT_COMPARED}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}
        return {key: value for key, value in sorted(values.items()) if _is_plain(value)}

    return [{"class": kind} | plain(group) for group in groups]


def _is_plain(value: Any) -> bool:
    return all(isinstance(v, (bool, int, float, str)) for v in (value if isinstance(value, list) else [value]))


def compare_optimizers(
    lrs_before: Sequence[float], before: Settings, lrs_now: Sequence[float], now: Settings
) -> Sameness:
    """What differs between a checkpoint's optimizer and one that goes on from it.

    Args:
        lrs_before, lrs_now: peak lr of each parameter group.
        before, now: `optimizer_settings`; where those of the checkpoint are empty, nobody knows them.

    Raises:
        ResumeError: they have not as many parameter groups.

    >>> old, new = ([{"class": "SGD", "weight_decay": d, "momentum": d}, {"weight_decay": 0}] for d in (0.1, 0.2))
    >>> print(compare_optimizers([0.1, 0.1], old, [0.1, 0.3], new))
    learning_rate 0.1 -> 0.3, weight_decay 0.1 -> 0.2, optimizer momentum 0.1 -> 0.2
    """
    if not len(lrs_before) == len(before or now) == len(lrs_now) == len(now):
        raise ResumeError(
            f"the checkpoint was trained with {len(lrs_before)} parameter groups (peak lr {show_lrs(lrs_before)}), but "
            f"this run has {len(lrs_now)} (peak lr {show_lrs(lrs_now)}): give it the same groups"
        )
    found: dict[str, dict[str, None]] = {}
    for old, new in zip(before or now, now, strict=True):
        for key in new.keys() & old.keys():
            if old[key] != new[key]:
                change = f"{old[key]} -> {new[key]}"
                said = change if _name_of(key) == key else f"{key} {change}"
                found.setdefault(_name_of(key), {})[said] = None  # once for all groups
    lr = changed_lrs(lrs_before, lrs_now)
    return Sameness(changes=lr | {name: ", ".join(found[name]) for name in NAMES if name in found})


def allowed_settings(before: Settings, now: Settings, allow: Iterable[str]) -> list[dict[str, Any]]:
    """The settings of each parameter group that take effect though the checkpoint has others.

    >>> old, new = ([{"class": "AdamW", "betas": [0.9, b], "eps": b}] for b in (0.95, 0.99))
    >>> allowed_settings(old, new, allow=["betas"])
    [{'betas': (0.9, 0.99)}]
    """
    allow = set(allow)
    return [
        {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in new.items()
            if key != "class" and _name_of(key) in allow and old.get(key) != value
        }
        for old, new in zip(before or now, now, strict=True)
    ]


def _name_of(key: str) -> str:
    """The name in `allow` of an optimizer's setting."""
    return key if key in NAMES else "optimizer"
