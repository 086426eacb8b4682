"""From what users type to a `Schedule`: names are checked and values cast here, once.

A setting comes from `--lr_scheduler_kwargs`, from a flag of the launcher, or from an HF_WSD_* environment variable. The
launcher turns its flags into those variables, so every process that it starts sees the same.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hf_wsd.asked import TRAINER_FLAGS, add_asked, no_such_setting, run_settings, setting
from hf_wsd.baselines import cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.casts import CASTS, cast
from hf_wsd.checks import count
from hf_wsd.errors import ScheduleError, SettingsError, WSDError, unknown
from hf_wsd.lengths import DEFAULT_DECAY_FRACTION, Length, decay_length, to_steps
from hf_wsd.lineage import Lineage
from hf_wsd.schedule import Schedule

BUILDERS: dict[str, Callable[..., Schedule]] = {
    "wsd": wsd,
    "wsd_s": wsd_s,
    "cyclic_cosine": cyclic_cosine,
    "multi_step": multi_step,
}
NAMES = tuple(BUILDERS)
PER_STEP = ("tokens_per_step", "samples_per_step")
COUNTS = (*PER_STEP, "calls_per_update")
LENGTHS = ("num_decay_steps", "num_stable_steps", "num_min_steps", "num_rewarmup_steps", "cycle_ends", "milestones")
_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_SWITCH = dict.fromkeys(_ON, True) | dict.fromkeys(_OFF, False)
_KWARGS = [name for name in CASTS if name not in COUNTS]  # the settings that builders take


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run was asked for beside its script: flags of the launcher, or HF_WSD_* variables.

    Args:
        trunk: train at the peak lr without an end date.
        budgets: lengths of the decayed models that will be wanted; their fork points are kept.
        num_decay_steps, decay_fraction, ..., multipliers: as in the builders `wsd`, `wsd_s`, `cyclic_cosine` and
            `multi_step`; lengths in steps, or as texts for `Length`.
        tokens_per_step, samples_per_step: of one update over all processes, where they cannot be counted from the data.
        calls_per_update: by what a script without a Trainer multiplies the totals that it gives `get_scheduler`; None:
            what the length typed shows, else the number of processes.
        branch: folder of the branch that this process runs; its record decides the schedule.
    """

    trunk: bool = False
    budgets: tuple[str, ...] = ()
    num_decay_steps: int | str | None = None
    decay_fraction: float | None = None
    decay_type: str | None = None
    decay_params: Mapping[str, float] | None = None
    min_lr_ratio: float | None = None
    num_min_steps: int | str | None = None
    warmup_type: str | None = None
    warmup_start: float | None = None
    cycle_ends: tuple[int | str, ...] = ()
    cycle_peaks: tuple[float, ...] = ()
    num_rewarmup_steps: int | str | None = None
    rewarmup_fraction: float | None = None
    milestones: tuple[int | str, ...] = ()
    milestone_fractions: tuple[float, ...] = ()
    multipliers: tuple[float, ...] = ()
    tokens_per_step: int | None = None
    samples_per_step: int | None = None
    calls_per_update: int | None = None
    branch: str | None = None

    def __post_init__(self) -> None:
        for budget in self.budgets:
            Length(budget)
        if self.decay_fraction is not None or isinstance(self.num_decay_steps, (int, float)):
            decay_length(10**9, **self.decay_kwargs())  # a trunk's decays come later, but are wrong now
        if self.trunk and self.cycle_ends:
            raise SettingsError("a trunk has no cycles: use --trunk with wsd, or cycle ends with wsd_s")

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """The settings in HF_WSD_* variables.

        Raises:
            SettingsError: an HF_WSD_* variable that does not exist, or a value that cannot be read.

        >>> Settings.from_env({"HF_WSD_TRUNK": "1", "HF_WSD_BUDGETS": "1M 2M"}).budgets
        ('1M', '2M')
        """
        known = {f"HF_WSD_{field.name.upper()}": field.name for field in fields(cls)}
        variables = [name for name in env if name.startswith("HF_WSD_")]
        for name in variables:
            if name not in known:
                raise SettingsError(unknown("variable", name, known))
        return cls.make(**{known[name]: env[name] for name in variables})

    @classmethod
    def make(cls, **given: Any) -> Settings:
        """The settings of those names; texts are read, numbers and lists taken as they are.

        Raises:
            SettingsError: a name that does not exist, or a value that cannot be read.

        >>> Settings.make(budgets=["1M", 500], decay_fraction="0.2").given()
        {'budgets': ['1M', '500'], 'decay_fraction': 0.2}
        """
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise SettingsError(unknown("setting", name, names))
        try:
            return cls(**{name: cls._read(name, value) for name, value in given.items() if value is not None})
        except WSDError as error:
            asked = {name: setting(name, value) for name, value in given.items()}
            add_asked(error, [text for name, text in asked.items() if name in str(error)] or asked.values())
            raise

    @staticmethod
    def _read(name: str, value: Any) -> Any:
        if name == "trunk":
            if str(value).lower() not in _SWITCH:
                raise SettingsError(f"trunk is a switch: {', '.join(filter(None, _SWITCH))}, not {value!r}")
            return _SWITCH[str(value).lower()]
        if name == "budgets":
            if not isinstance(value, (str, list, tuple)):
                raise SettingsError(f"budgets is a list of lengths such as 1B 2B 4B, not {value!r}")
            return tuple(value.replace(",", " ").split() if isinstance(value, str) else map(str, value))
        if name == "branch":
            return str(value)
        value = cast(name, value)
        if value == {}:
            return None
        if name in COUNTS:
            count(name, value, at_least=1)
        return tuple(value) if isinstance(value, list) else value

    def to_env(self) -> dict[str, str]:
        """The HF_WSD_* variables that `from_env` reads back."""
        texts = {}
        for name, value in self.given().items():
            if isinstance(value, Mapping):
                value = [f"{key}={number}" for key, number in value.items()]
            text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            texts[f"HF_WSD_{name.upper()}"] = text
        return texts

    def given(self) -> dict[str, Any]:
        """The settings that were set at all, JSON-ready."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {
            name: value
            for name, value in values.items()
            if value is not None and value is not False and value not in ([], {})
        }

    def decay_kwargs(self) -> dict[str, Any]:
        """The settings that describe a decay's length, for `Plan`."""
        return {"num_decay_steps": self.num_decay_steps, "decay_fraction": self.decay_fraction}

    def schedule_kwargs(self) -> dict[str, Any]:
        """The settings as keyword arguments of a builder."""
        return {name: value for name, value in self.given().items() if name in _KWARGS}

    def per_step(self) -> dict[str, int | None]:
        """Tokens and samples of one update, as `Length.steps` takes them."""
        return {"tokens_per_step": self.tokens_per_step, "samples_per_step": self.samples_per_step}


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
        ours = {key: value for key, value in settings.given().items() if key in _KWARGS or key == "trunk"}
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
    given = {key: value for key, value in kwargs.items() if value is not None}
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
    return BUILDERS[name](num_training_steps, num_warmup_steps=num_warmup_steps, **merged)


def _settings_of(name: str) -> list[str]:
    return [key for key in inspect.signature(BUILDERS[name]).parameters if key in _KWARGS]


def _in_steps(value: Any, known: Mapping[str, int | None]) -> Any:
    return [to_steps(one, **known) for one in value] if isinstance(value, list) else to_steps(value, **known)


def _branch_schedule(folder: str, num_training_steps: int | None) -> Schedule:
    schedule = Lineage.read(Path(folder)).schedule
    if num_training_steps not in (None, schedule.total_steps):
        raise ScheduleError(
            f"the branch in {folder} ends at step {schedule.total_steps} but the script trains to "
            f"{num_training_steps}: does it ignore --max_steps?"
        )
    return schedule
