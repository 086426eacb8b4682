"""What a set of budgets will take, before any GPU is paid: runs, checkpoints to keep, tokens, FLOPs, disk, hours."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_wsd.baselines import constant, cosine, cyclic_cosine
from hf_wsd.builders import wsd_s
from hf_wsd.errors import ScheduleError, SettingsError, unknown
from hf_wsd.lengths import to_steps
from hf_wsd.plan import Plan, branch_name, training_flops
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase

METHODS = ("wsd", "wsd_s", "cosine", "cyclic_cosine")
BYTES_PER_PARAMETER = 12  # fp32 weights and AdamW's two moments, as Trainer saves them


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One run: from the checkpoint at step `start` (0: from the beginning) to step `end` on its schedule.

    >>> Leg(name="trunk", schedule=constant(), start=0, end=900).steps
    900
    """

    name: str
    schedule: Schedule
    start: int
    end: int

    @property
    def steps(self) -> int:
        """Updates that the run makes itself."""
        return self.end - self.start


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A checkpoint that must outlive the run: which run saves it, after how many updates, and what for.

    >>> Kept(run="trunk", step=900, why="1000 decays from here").path("RUN")
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
        plan: the budgets in steps; forks are those of `wsd`.
        num_warmup_steps: updates of the warm-up.
        settings: decay length, shape and minimum, as asked.
        parameters: of the model, for FLOPs and disk.
        tokens_per_second: throughput of one GPU, for GPU-hours.
    """

    method: str
    legs: tuple[Leg, ...]
    plan: Plan
    num_warmup_steps: int = 0
    settings: Mapping[str, Any]
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
        lengths = dict(lengths or {})
        plan = Plan.of_budgets(budgets, **lengths)
        if "num_decay_steps" in decay:
            known = {name: size for name, size in lengths.items() if name != "of"}
            whole = to_steps(lengths.get("of"), **known) or plan.decays[-1].end
            decay["num_decay_steps"] = to_steps(decay["num_decay_steps"], **known, of=whole)
        if method == "wsd":
            length = {name: decay[name] for name in ("num_decay_steps", "decay_fraction") if name in decay}
            plan = Plan.of_budgets(budgets, **lengths, **length)
        legs = {"wsd": _trunk_and_branches, "wsd_s": _line, "cosine": _separate, "cyclic_cosine": _cycles}[method]
        return cls(
            method=method,
            legs=tuple(legs(plan, num_warmup_steps, decay)),
            plan=plan,
            num_warmup_steps=num_warmup_steps,
            settings=decay,
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
        return sum({decay.end for decay in self.plan.decays})

    @property
    def part_of_longest(self) -> float:
        """Updates of all runs over those of the longest model alone: 2.6 is the 260 % of separate runs."""
        return self.steps / max(decay.end for decay in self.plan.decays)

    @property
    def saving(self) -> float:
        """Part of the separate runs' compute that is saved, at most 1."""
        return 1 - self.steps / self.separate_steps

    def kept(self) -> Iterator[Kept]:
        """The named list of checkpoints to keep, run by run: fork points, starts and ends of decays."""
        for leg in self.legs:
            names = {d.fork: f"{d.requested} decays from here" for d in self.plan.decays} if leg.name == "trunk" else {}
            marks = {
                step: kind for step, kind in leg.schedule.checkpoint_steps().items() if leg.start < step <= leg.end
            }
            if self.method.endswith("cosine"):
                marks = {step: kind for step, kind in marks.items() if kind == "post-decay"}
            for step, why in sorted((marks | names).items()):
                yield Kept(run=leg.name, step=step, why=why)

    def tokens(self, steps: int) -> int | None:
        """Tokens of that many updates, or None where the tokens of a step are not known."""
        return self.plan.tokens(steps)

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
        models = [
            {"budget": str(decay.requested), "end": decay.end, "tokens": self.tokens(decay.end), "decay_from": fork}
            for decay, fork in zip(self.plan.decays, self.decay_starts(), strict=True)
        ]
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

    def decay_starts(self) -> list[int]:
        """For each budget the step from which its model's lr falls for the last time."""
        starts = []
        for decay in self.plan.decays:
            leg = next(leg for leg in self.legs if leg.start < decay.end <= leg.end and leg.name != "trunk")
            spans = [s for s, _, segment in leg.schedule.spans() if segment.phase is Phase.DECAY and s < decay.end]
            starts.append(spans[-1])
        return starts

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
        budgets = [_asked(str(d.requested), d.end) for d in self.plan.decays]
        if self.method == "cosine":
            ratio = self.settings.get("min_lr_ratio")
            kind = "cosine" if not ratio else f"cosine_with_min_lr --lr_scheduler_kwargs '{{\"min_lr_rate\": {ratio}}}'"
            return [
                f"{launcher} {script} --lr_scheduler_type {kind} {warmup} --max_steps {leg.end} "
                f"--output_dir {shlex.quote(f'{output_dir}-{leg.end}')}"
                for leg in self.legs
            ]
        asked = ["--trunk", "--budgets", *budgets] if self.method == "wsd" else ["--cycle-ends", *self._ends()]
        flags = " ".join([*asked, *ours, *([per_step] if per_step else [])])
        train = (
            f"{launcher} -m hf_wsd {flags} {script} --lr_scheduler_type {self.method} {warmup} "
            f"--max_steps {self.legs[0].end} --output_dir {shlex.quote(output_dir)}"
        )
        return [train, f"hf-wsd decay {shlex.quote(output_dir)}"] if self.method == "wsd" else [train]

    def _ends(self) -> list[str]:
        return [str(decay.end) for decay in self.plan.decays]


def _asked(text: str, end: int) -> str:
    return str(end) if text.endswith("%") else text  # a part of what, the launcher could not know


def _words(value: Any) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else shlex.quote(str(value))


def _trunk_and_branches(plan: Plan, warmup: int, decay: dict[str, Any]) -> Iterator[Leg]:
    trunk = constant(num_warmup_steps=warmup)
    shape, params, final = (decay.get(name) for name in ("decay_type", "decay_params", "min_lr_ratio"))
    yield Leg(name="trunk", schedule=trunk, start=0, end=plan.trunk_steps)
    for one in plan.decays:
        schedule = trunk.fork(one.fork, decay_steps=one.steps, shape=shape or "1-sqrt", final=final, params=params)
        yield Leg(name=branch_name(one, shape or "1-sqrt", params), schedule=schedule, start=one.fork, end=one.end)


def _line(plan: Plan, warmup: int, decay: dict[str, Any]) -> Iterator[Leg]:
    ends = sorted({one.end for one in plan.decays})
    yield Leg(name="line", schedule=wsd_s(cycle_ends=ends, num_warmup_steps=warmup, **decay), start=0, end=ends[-1])


def _cycles(plan: Plan, warmup: int, decay: dict[str, Any]) -> Iterator[Leg]:
    ends = sorted({one.end for one in plan.decays})
    schedule = cyclic_cosine(cycle_ends=ends, num_warmup_steps=warmup, **decay)
    yield Leg(name="line", schedule=schedule, start=0, end=ends[-1])


def _separate(plan: Plan, warmup: int, decay: dict[str, Any]) -> Iterator[Leg]:
    for end in sorted({one.end for one in plan.decays}):
        schedule = cosine(end, num_warmup_steps=warmup, **decay)
        yield Leg(name=f"cosine-{end}", schedule=schedule, start=0, end=end)
