"""From a schedule's name and what users type to a `Schedule`: names are checked and values cast here, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_wsd.asked import TRAINER_FLAGS, add_asked, no_such_setting, run_settings, setting
from hf_wsd.baselines import cyclic_cosine, multi_step
from hf_wsd.builders import rewarmed, wsd, wsd_s
from hf_wsd.casts import cast
from hf_wsd.errors import ScheduleError, SettingsError, WSDError, unknown
from hf_wsd.lengths import DEFAULT_DECAY_FRACTION, to_steps
from hf_wsd.lineage import Lineage
from hf_wsd.sameness import check_names
from hf_wsd.schedule import Schedule
from hf_wsd.settings import KWARGS, Settings

BUILDERS: dict[str, Callable[..., Schedule]] = {
    "wsd": wsd,
    "wsd_s": wsd_s,
    "cyclic_cosine": cyclic_cosine,
    "multi_step": multi_step,
}
NAMES = tuple(BUILDERS)
LENGTHS = ("num_decay_steps", "num_stable_steps", "num_min_steps", "num_rewarmup_steps", "cycle_ends", "milestones")


def refuse_ignored_settings(settings: Settings, name: str) -> None:
    """Refuse settings that a scheduler which is not ours would ignore.

    Raises:
        SettingsError: something is set.

    >>> refuse_ignored_settings(Settings(), "cosine")
    """
    if given := ", ".join(settings.given()):
        raise SettingsError(
            f"{given} would be ignored: the script's scheduler is {name}. Add --lr_scheduler_type wsd (or "
            f"{' or '.join(n for n in NAMES if n != 'wsd')}), or leave the setting (a launcher flag or an HF_WSD_* "
            "variable) out"
        )


def allowed_differences(more: Any = ()) -> frozenset[str]:
    """The differences to the checkpoint's run that are meant, by name (`hf_wsd.sameness.NAMES`).

    A branch of `hf-wsd decay` is started with the trunk's own command: what that allows says nothing about the branch,
    and its record alone counts.

    Args:
        more: a name, or names, beside those of the settings.

    Raises:
        SettingsError: a name that does not exist.

    >>> sorted(allowed_differences("seed data"))
    ['data', 'seed']
    """
    settings = Settings.from_env()
    if settings.branch:
        return frozenset(Lineage.read(Path(settings.branch)).sameness.get("allowed", ()))
    return check_names([*settings.allow, *(cast("allow", more) or ())])


def build_schedule(
    name: str,
    *,
    num_training_steps: int | None,
    num_warmup_steps: int = 0,
    kwargs: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    flags: tuple[str, str] = TRAINER_FLAGS,
) -> Schedule:
    """The schedule that a name, the run's length and the settings of all sources describe.

    Args:
        name: a key of `BUILDERS`.
        num_training_steps: updates of the run, as the Trainer counts them.
        num_warmup_steps: updates of the warm-up.
        kwargs: `lr_scheduler_kwargs`, as parsed by transformers (numbers may still be strings).
        settings: None reads the HF_WSD_* variables.
        flags: what the script calls its length and its warm-up, for errors.

    Raises:
        SettingsError: an unknown or doubled name. ScheduleError: lengths that do not fit.

    >>> asked = {"num_decay_steps": "200K"}
    >>> schedule = build_schedule("wsd", num_training_steps=1000, kwargs=asked, settings=Settings(tokens_per_step=1000))
    >>> schedule.checkpoint_steps()
    {800: 'pre-decay', 1000: 'post-decay'}
    """
    if name not in BUILDERS:
        raise SettingsError(unknown("schedule", name, BUILDERS))
    settings = Settings.from_env() if settings is None else settings
    try:
        return _build_schedule(name, num_training_steps, num_warmup_steps, kwargs or {}, settings)
    except WSDError as error:
        asked = run_settings(num_training_steps, num_warmup_steps, kwargs, flags)
        ours = {key: value for key, value in settings.given().items() if key in KWARGS or key == "trunk"}
        asked += [setting(key, value) for key, value in ours.items()]
        lengths = {"num_decay_steps", "decay_fraction", "trunk"}
        if "decay_fraction" in _settings_of(name) and lengths.isdisjoint({*ours, *(kwargs or ())}):
            asked.append(f"decay_fraction {DEFAULT_DECAY_FRACTION} (default)")
        add_asked(error, asked)
        raise


def _build_schedule(
    name: str,
    num_training_steps: int | None,
    num_warmup_steps: int,
    kwargs: Mapping[str, Any],
    settings: Settings,
) -> Schedule:
    given = {key: value for key, value in kwargs.items() if value is not None and key != "allow"}
    ours = settings.schedule_kwargs()
    if settings.trunk and name != "wsd":
        raise SettingsError(f"a trunk stays at the peak: use --trunk with --lr_scheduler_type wsd, not {name}")
    known = {builder: _settings_of(builder) for builder in BUILDERS}
    for key in (*given, *ours):
        if key not in known[name]:
            raise SettingsError(no_such_setting(key, name, known, [field.name for field in fields(Settings)]))
    given = {key: cast(key, value) for key, value in given.items()}
    for key in given.keys() & ours.keys():
        if given[key] != ours[key]:
            raise SettingsError(
                f"{key} is given twice: {given[key]!r} in lr_scheduler_kwargs, {ours[key]!r} by a flag of the launcher "
                f"or HF_WSD_{key.upper()}. Keep one"
            )
    if settings.branch:
        return _branch_schedule(settings.branch, num_training_steps)
    units = settings.per_step() | {"of": num_training_steps}
    later = ("num_decay_steps", "decay_fraction") if settings.trunk else ()  # a trunk's decays are no part of it
    asked = {key: value for key, value in {**ours, **given}.items() if key not in later}
    merged = {key: _in_steps(value, units) if key in LENGTHS else value for key, value in asked.items()}
    if settings.trunk:
        merged["num_decay_steps"] = 0
    schedule = BUILDERS[name](num_training_steps, num_warmup_steps=num_warmup_steps, **merged)
    if settings.rewarmup_at is None or settings.rewarmup_steps is None:
        return schedule
    shape = merged.get("warmup_type", "linear")
    return rewarmed(schedule, at=settings.rewarmup_at, steps=settings.rewarmup_steps, shape=shape)


def _settings_of(name: str) -> list[str]:
    return [key for key in inspect.signature(BUILDERS[name]).parameters if key in KWARGS]


def _in_steps(value: Any, known: Mapping[str, int | None]) -> Any:
    return [to_steps(one, **known) for one in value] if isinstance(value, list) else to_steps(value, **known)


def _branch_schedule(folder: str, num_training_steps: int | None) -> Schedule:
    schedule = Lineage.read(Path(folder)).schedule
    if schedule.total_steps is not None and num_training_steps not in (None, schedule.total_steps):
        raise ScheduleError(
            f"the branch in {folder} ends at step {schedule.total_steps} but the script trains to "
            f"{num_training_steps}: does it ignore --max_steps?"
        )
    return schedule
