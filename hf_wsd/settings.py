"""What a run is asked for beside its script: flags of the launcher, HF_WSD_* variables, `register(...)`.

The launcher turns its flags into those variables, so every process that it starts sees the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_wsd.asked import add_asked, setting
from hf_wsd.casts import CASTS, cast
from hf_wsd.checks import count
from hf_wsd.errors import SettingsError, WSDError, unknown
from hf_wsd.lengths import Length, decay_length
from hf_wsd.sameness import check_names

PER_STEP = ("tokens_per_step", "samples_per_step")
COUNTS = (*PER_STEP, "calls_per_update")
_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_SWITCH = dict.fromkeys(_ON, True) | dict.fromkeys(_OFF, False)
OF_RUN = (  # what a schedule knows nothing of
    *("allow", "expect", "keep_every", "finish_by", "time_budget", "job_time_limit", "on_job_end", "on_damage"),
    *("decay_optimizer", "rewarmup_at", "rewarmup_steps"),
)
KWARGS = [name for name in CASTS if name not in (*COUNTS, *OF_RUN)]  # the settings that builders take
CHOICES = {
    "expect": ("start", "continue", "branch", "extend"),
    "on_job_end": ("save", "decay"),
    "on_damage": ("pass-over", "refuse"),
}


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
        allow: differences to the checkpoint's run that are meant (`hf_wsd.sameness` has the names).
        expect: what the run has to be: "start", "continue", "branch" or "extend"; anything else is refused.
        keep_every: a length; every so many steps a checkpoint is kept for good (not in a branch of `hf-wsd decay`).
        finish_by: a time such as "2026-12-01T08:00"; decay, evaluation and save end before it.
        time_budget: the same as a duration, "23h", counted over all jobs of the run.
        job_time_limit: a duration after which this job will be ended; the run saves before and exits.
        on_job_end: "save" (None), or "decay" where the measured time allows it.
        on_damage: what a resume does about a damaged newest checkpoint: "pass-over" (None) or "refuse".
        decay_optimizer: settings of the optimizer from the first decay on, such as weight_decay.
        rewarmup_at, rewarmup_steps: the run goes on from a checkpoint at that step which has no optimizer state, and
            the lr climbs from 0 back to the peak over so many steps (0: it is the peak at once).
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
    allow: tuple[str, ...] = ()
    expect: str | None = None
    keep_every: int | str | None = None
    finish_by: str | None = None
    time_budget: str | None = None
    job_time_limit: str | None = None
    on_job_end: str | None = None
    on_damage: str | None = None
    decay_optimizer: Mapping[str, float] | None = None
    rewarmup_at: int | None = None
    rewarmup_steps: int | None = None
    branch: str | None = None

    def __post_init__(self) -> None:
        for budget in self.budgets:
            Length(budget)
        if self.decay_fraction is not None or isinstance(self.num_decay_steps, (int, float)):
            decay_length(10**9, **self.decay_kwargs())  # a trunk's decays come later, but are wrong now
        for name, choices in CHOICES.items():
            if getattr(self, name) not in (None, *choices):
                raise SettingsError(unknown(f"value of {name}", getattr(self, name), choices))
        check_names(self.allow)
        if (self.rewarmup_at is None) != (self.rewarmup_steps is None):
            raise SettingsError("a re-warm-up has a beginning and a length: give both rewarmup_at and rewarmup_steps")
        if self.rewarmup_at is not None:
            count("rewarmup_at", self.rewarmup_at, at_least=1)
            count("rewarmup_steps", self.rewarmup_steps)
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
        if name in COUNTS or (name == "keep_every" and not isinstance(value, str)):
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
        return {name: value for name, value in self.given().items() if name in KWARGS}

    def per_step(self) -> dict[str, int | None]:
        """Tokens and samples of one update, as `Length.steps` takes them."""
        return {"tokens_per_step": self.tokens_per_step, "samples_per_step": self.samples_per_step}
