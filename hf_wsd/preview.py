"""What a set of budgets will take, before any GPU is paid: runs, checkpoints to keep, tokens, FLOPs, disk, hours."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_wsd.errors import ScheduleError, SettingsError, unknown
from hf_wsd.legs import LEGS, METHODS, Leg, leg_to
from hf_wsd.lengths import to_steps
from hf_wsd.plan import read_budgets, training_flops
from hf_wsd.segment import Phase

BYTES_PER_PARAMETER = 12  # fp32 weights and AdamW's two moments, as Trainer saves them


@dataclass(frozen=True, kw_only=True)
class Model:
    """A finished model: its budget as asked for, the step from which its lr falls for the last time, and its end.

    >>> Model(budget="10%", decay_from=900, end=1000).end
    1000
    """

    budget: str
    decay_from: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A checkpoint that must outlive the run: which run saves it, after how many updates, and what for.

    >>> Kept(run="trunk", step=900, why="fork point of 1B").path("RUN")
    'RUN/checkpoint-900'
    """

    run: str
    step: int
    why: str

    def path(self, root: str) -> str:
        """Its folder, below the --output_dir of the trunk (or of the one line; separate runs have one each)."""
        folder = {"trunk": root, "line": root}.get(self.run, f"{root}/_branches/{self.run}")
        return f"{f'{root}-{self.step}' if self.run.startswith('cosine-') else folder}/checkpoint-{self.step}"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The runs that give one finished model per budget, and what they take.

    Args:
        method: "wsd" (a trunk and its branches), "wsd_s" (one line), "cosine" (separate runs) or "cyclic_cosine".
        legs: the runs, in the order in which they are started.
        models: one per budget, shortest first.
        num_warmup_steps: updates of the warm-up.
        settings: decay length, shape and minimum, as asked.
        tokens_per_step: tokens of one update over all GPUs.
        parameters: of the model, for FLOPs and disk.
        tokens_per_second: throughput of one GPU, for GPU-hours.
    """

    method: str
    legs: tuple[Leg, ...]
    models: tuple[Model, ...]
    num_warmup_steps: int = 0
    settings: Mapping[str, Any]
    tokens_per_step: int | None = None
    parameters: int | None = None
    tokens_per_second: float | None = None

    @classmethod
    def make(
        cls,
        method: str,
        budgets: Sequence[str],
        *,
        num_warmup_steps: int = 0,
        parameters: int | None = None,
        tokens_per_second: float | None = None,
        lengths: Mapping[str, Any] | None = None,
        **decay: Any,
    ) -> Preview:
        """The preview of a method on budgets.

        Args:
            method: one of METHODS.
            budgets: lengths of the finished models, as in `Plan.of_budgets`.
            num_warmup_steps: updates of the warm-up of every run that starts anew.
            parameters, tokens_per_second: of the model and of one GPU.
            lengths: tokens_per_step, samples_per_step, of: as in `Plan.of_budgets`.
            decay: num_decay_steps, decay_fraction, decay_type, decay_params, min_lr_ratio, as in the builders; for the
                cosines min_lr_ratio alone.

        Raises:
            SettingsError: an unknown method, or a setting that it does not have.
            ScheduleError: lengths that do not fit.

        >>> budgets = ["10%", "30%", "50%", "70%", "100%"]
        >>> [round(Preview.make(m, budgets, lengths={"of": "10000"}).part_of_longest, 2) for m in METHODS]
        [1.16, 1.0, 2.6, 1.0]
        """
        decay = {name: value for name, value in decay.items() if value is not None}
        if method not in METHODS:
            raise SettingsError(unknown("method", method, METHODS))
        if method.endswith("cosine") and (extra := sorted(decay.keys() - {"min_lr_ratio"})):
            raise SettingsError(f"{', '.join(extra)} say nothing about {method}: its decay is the whole run")
        if not budgets:
            raise ScheduleError("no budgets: give the lengths of the models that you want, such as 1B 2B 4B")
        known = dict(lengths or {})
        ends, whole = read_budgets(budgets, **known)
        per_step = {name: size for name, size in known.items() if name != "of"}
        if "num_decay_steps" in decay:
            decay["num_decay_steps"] = to_steps(decay["num_decay_steps"], **per_step, of=whole)
        legs = tuple(LEGS[method](list(ends), num_warmup_steps, decay))
        models = (Model(budget=str(asked), decay_from=_decay_start(legs, end), end=end) for end, asked in ends.items())
        return cls(
            method=method,
            legs=legs,
            models=tuple(models),
            num_warmup_steps=num_warmup_steps,
            settings=decay,
            tokens_per_step=per_step.get("tokens_per_step"),
            parameters=parameters,
            tokens_per_second=tokens_per_second,
        )

    @property
    def steps(self) -> int:
        """Updates of all runs."""
        return sum(leg.steps for leg in self.legs)

    @property
    def separate_steps(self) -> int:
        """Updates of one separate run per budget."""
        return sum(model.end for model in self.models)

    @property
    def part_of_longest(self) -> float:
        """Updates of all runs over those of the longest model alone: 2.6 is the 260 % of separate runs."""
        return self.steps / self.models[-1].end

    @property
    def saving(self) -> float:
        """Part of the separate runs' compute that is saved, at most 1."""
        return 1 - self.steps / self.separate_steps

    def kept(self) -> Iterator[Kept]:
        """The named list of checkpoints to keep, run by run: fork points, starts and ends of decays."""
        for leg in self.legs:
            names: dict[int, str] = {}
            for model in self.models if leg.name == "trunk" else ():
                others = names.get(model.decay_from)
                names[model.decay_from] = f"{others}, {model.budget}" if others else f"fork point of {model.budget}"
            marks = {
                step: kind for step, kind in leg.schedule.checkpoint_steps().items() if leg.start < step <= leg.end
            }
            if self.method.endswith("cosine"):
                marks = {step: kind for step, kind in marks.items() if kind == "post-decay"}
            for step, why in sorted((marks | names).items()):
                yield Kept(run=leg.name, step=step, why=why)

    def tokens(self, steps: int) -> int | None:
        """Tokens of that many updates, or None where the tokens of a step are not known."""
        return None if self.tokens_per_step is None else steps * self.tokens_per_step

    def costs(self, steps: int) -> dict[str, float | None]:
        """Tokens, FLOPs (6 N D) and GPU-hours of that many updates; None where a number is missing."""
        tokens = self.tokens(steps)
        flops = training_flops(self.parameters, tokens) if self.parameters and tokens is not None else None
        hours = tokens / self.tokens_per_second / 3600 if self.tokens_per_second and tokens is not None else None
        return {"tokens": tokens, "flops": flops, "gpu_hours": hours}

    @property
    def disk_bytes(self) -> int | None:
        """Disk for the kept checkpoints: 12 bytes a parameter (fp32 weights, AdamW's two moments)."""
        return None if self.parameters is None else BYTES_PER_PARAMETER * self.parameters * len(list(self.kept()))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        legs = [
            {"run": leg.name, "start": leg.start, "end": leg.end, "schedule": leg.schedule.to_dict()}
            for leg in self.legs
        ]
        models = [asdict(model) | {"tokens": self.tokens(model.end)} for model in self.models]
        return {
            "method": self.method,
            "models": models,
            "runs": legs,
            "checkpoints": [asdict(kept) for kept in self.kept()],
            "total": {"steps": self.steps, **self.costs(self.steps)},
            "separate": {"steps": self.separate_steps, **self.costs(self.separate_steps)},
            "part_of_longest": self.part_of_longest,
            "saving": self.saving,
            "disk_bytes": self.disk_bytes,
            "formulas": {"flops": "6 N D", "disk": f"{BYTES_PER_PARAMETER} bytes a parameter and checkpoint"},
        }

    def commands(self, output_dir: str, *, script: str, launcher: str, per_step: str = "") -> list[str]:
        """The shell commands that make the models.

        Args:
            output_dir: folder of the trunk or the line; separate runs get their length behind it.
            script: the script with its own arguments.
            launcher: such as "accelerate launch --num_processes 8".
            per_step: our flag for the tokens of a step, where the script's data do not tell.
        """
        ours = [f"--{name.replace('_', '-')} {_words(value)}" for name, value in self.settings.items()]
        warmup = f"--warmup_steps {self.num_warmup_steps}"
        # a part of what, the launcher could not know
        budgets = [str(model.end) if model.budget.endswith("%") else model.budget for model in self.models]
        if self.method == "cosine":
            ratio = self.settings.get("min_lr_ratio")
            kind = "cosine" if not ratio else f"cosine_with_min_lr --lr_scheduler_kwargs '{{\"min_lr_rate\": {ratio}}}'"
            return [
                f"{launcher} {script} --lr_scheduler_type {kind} {warmup} --max_steps {leg.end} "
                f"--output_dir {shlex.quote(f'{output_dir}-{leg.end}')}"
                for leg in self.legs
            ]
        asked = (
            ["--trunk", "--budgets", *budgets]
            if self.method == "wsd"
            else ["--cycle-ends", *(str(model.end) for model in self.models)]
        )
        flags = " ".join([*asked, *ours, *([per_step] if per_step else [])])
        train = (
            f"{launcher} -m hf_wsd {flags} {script} --lr_scheduler_type {self.method} {warmup} "
            f"--max_steps {self.legs[0].end} --output_dir {shlex.quote(output_dir)}"
        )
        return [train, f"hf-wsd decay {shlex.quote(output_dir)}"] if self.method == "wsd" else [train]


def _words(value: Any) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else shlex.quote(str(value))


def _decay_start(legs: Sequence[Leg], end: int) -> int:
    spans = leg_to(end, legs).schedule.spans()
    return [start for start, _, one in spans if one.phase is Phase.DECAY and start < end][-1]
