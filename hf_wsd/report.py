"""What a family gave and what it cost, read from records and histories: the numbers of its page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from hf_wsd.family import Run
from hf_wsd.lengths import Length, show_tokens
from hf_wsd.page import Grid
from hf_wsd.plan import training_flops
from hf_wsd.retention import copies
from hf_wsd.sameness import describe
from hf_wsd.segment import Phase

COLUMNS = (
    "budget (tokens seen)",
    "decay from step",
    "ends at step",
    "trunk loss at the fork",
    "trunk loss at the same tokens",
    "decayed loss",
    "bits per byte",
    "branch",
)
CHANGED = "changed in the decay"  # a column more where a decay has other data or another optimizer


@dataclass(frozen=True, kw_only=True)
class Row:
    """One decayed model of a family; what is not known is None.

    Args:
        run: folder of the run that made it, relative to the trunk's; "." is the trunk's own (a WSD-S line).
        requested: the budget as the user wrote it.
        fork: step at which the decay starts.
        end: step at which the model ends.
        tokens: seen by the model at its end, those of the trunk included.
        trunk_loss_at_fork: the evaluation from which the decay started.
        trunk_loss_at_end: the evaluation of the undecayed trunk after as many steps as the model has.
        loss, bits_per_byte, perplexity: the evaluation of the model at its end; None until it is finished.
        finished: whether the model is saved.
        differs: how it is not what a straight run would have been; "" if nothing is known to differ.
        changed: what its decay has beside a falling lr: data, arguments, settings of the optimizer.
        control: the run with the same decay but for that.
        shape: of its decay; None where the schedule has several steps of a constant lr instead.
        model: folder of the checkpoint that holds it, relative to the trunk's; None where there is none (any more).
    """

    run: str
    requested: str | None
    fork: int
    end: int
    tokens: int | None
    trunk_loss_at_fork: float | None
    trunk_loss_at_end: float | None
    loss: float | None
    bits_per_byte: float | None
    perplexity: float | None
    finished: bool
    differs: str = ""
    changed: str = ""
    control: str | None = None
    shape: str | None = None
    model: str | None = None

    @property
    def drop(self) -> float | None:
        """How far the loss fell from the fork point to the end."""
        return _difference(self.trunk_loss_at_fork, self.loss)

    @property
    def gain(self) -> float | None:
        """How far the model ends below the undecayed trunk that has seen as many tokens."""
        return _difference(self.trunk_loss_at_end, self.loss)

    @property
    def name(self) -> str:
        """Of its branch; "-" where the trunk itself made it."""
        return "-" if self.run == "." else Path(self.run).name

    @property
    def budget(self) -> str:
        """Tokens as they were asked for, and as they are."""
        seen = "-" if self.tokens is None else show_tokens(self.tokens)
        in_tokens = self.requested and Length(self.requested).tokens
        return f"{self.requested} ({seen})" if in_tokens else seen

    def cells(self) -> list[str]:
        """The texts below COLUMNS."""
        losses = (self.trunk_loss_at_fork, self.trunk_loss_at_end, self.loss, self.bits_per_byte)
        texts = ["-" if loss is None else f"{loss:.3f}" for loss in losses]
        texts[2] = texts[2] if self.finished else "unfinished"
        return [self.budget, str(self.fork), str(self.end), *texts, self.name]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The decayed models of a family and the cost of those that are finished.

    Args:
        run: name of the trunk's folder.
        rows: one per decayed model, shortest first.
        steps_done: updates that the trunk has done.
        trunk_steps: those that the finished models needed: up to the last of their fork points.
        family_steps: the same and the decays of the finished models.
        separate_steps: updates of one separate run per finished model; models that end together, with the same changes,
            count once.
        tokens_per_step: tokens of one update; None where unknown, or not the same in the whole family.
        parameters: trainable parameters, shared ones counted once.
    """

    run: str
    rows: tuple[Row, ...]
    steps_done: int
    trunk_steps: int
    family_steps: int
    separate_steps: int
    tokens_per_step: int | None
    parameters: int | None

    @property
    def saving(self) -> float | None:
        """Part of the separate runs' compute that the family saves, at most 1; None before a model is finished."""
        return 1 - self.family_steps / self.separate_steps if self.separate_steps else None

    def table(self) -> list[list[str]]:
        """The column heads, then the cells of each row."""
        if not any(row.changed for row in self.rows):
            return [[*COLUMNS], *(row.cells() for row in self.rows)]
        return [[*COLUMNS, CHANGED], *([*row.cells(), row.changed or "-"] for row in self.rows)]

    @property
    def claim(self) -> str:
        """What the decays did for the loss, in one sentence: against the trunk at equal tokens where that is known."""
        rows = [row for row in self.rows if not row.changed] or self.rows  # other data are no merit of the decay
        gains = [row.gain for row in rows if row.gain is not None]
        drops = [row.drop for row in rows if row.drop is not None]
        if gains and all(gain > 0 for gain in gains):  # one that has diverged is not
            return f"Decays end {_range(gains)} below the trunk's loss at equal tokens"
        if gains:
            return (
                f"{sum(gain > 0 for gain in gains)} of {len(gains)} decays end below the trunk's loss at equal tokens"
            )
        if drops and all(drop > 0 for drop in drops):
            return f"Decays lower the loss by {_range(drops)}"
        if not self.rows:
            return "No decays yet"
        return f"{sum(row.finished for row in self.rows)} of {len(self.rows)} decayed models are finished"

    def tokens(self, steps: int) -> int | None:
        """Tokens of that many updates."""
        return None if self.tokens_per_step is None else steps * self.tokens_per_step

    def flops(self, steps: int) -> int | None:
        """Training compute of that many updates, in FLOPs; see `training_flops`."""
        tokens = self.tokens(steps)
        return None if tokens is None or self.parameters is None else training_flops(self.parameters, tokens)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, costs and saving included; a loss that has diverged is None."""
        costs = {
            f"{name}_{unit}": measure(steps)
            for name, steps in (("family", self.family_steps), ("separate", self.separate_steps))
            for unit, measure in (("tokens", self.tokens), ("flops", self.flops))
        }
        rows = [
            {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in row.items()}
            for row in map(asdict, self.rows)
        ]
        return asdict(self) | {"rows": rows, "saving": self.saving, "claim": self.claim} | costs

    def notes(self) -> Iterator[str]:
        """Sentences below the table: on the models, on what they cost, on what is not counted."""
        yield from self.model_notes()
        if self.saving is not None:
            yield f"Family: {self._cost(self.family_steps)}."
            yield f"Separate runs of the same budgets: {self._cost(self.separate_steps)}. Saving: {self.saving:.1%}."
            if self.flops(1) is not None:
                yield f"FLOPs are 6ND: 6 x {self.parameters:,} parameters x tokens."
        yield from self.not_counted()

    def model_notes(self) -> Iterator[str]:
        """What changed decays gave, what differs from a straight run, what is missing."""
        losses = {row.run: row.loss for row in self.rows}
        for row in self.rows:
            control = losses.get(row.control or "")
            if row.loss is not None and control is not None:
                gain = f"{abs(control - row.loss):.3f} {'below' if row.loss < control else 'above'}"
                yield f"{row.changed}: {gain} its control, {Path(str(row.control)).name} ({control:.3f})."
        if differing := [f"{Path(row.run).name or row.run} ({row.differs})" for row in self.rows if row.differs]:
            yield f"Not the bits of a straight run: {', '.join(differing)}."
        if not self.rows:
            yield "`hf-wsd decay` trains decayed models off its checkpoints."
        elif all(loss is None for row in self.rows for loss in (row.trunk_loss_at_fork, row.loss)):
            yield "No evaluation at a fork point or an end: train with `--eval_strategy steps` and an evaluation set."

    def not_counted(self) -> Iterator[str]:
        """What was trained and is no part of the cost."""
        if self.saving is not None and self.steps_done > self.trunk_steps:
            yield f"Not counted: what the trunk did after step {self.trunk_steps}, up to step {self.steps_done}."
        if unfinished := sum(not row.finished for row in self.rows):
            yield f"Not counted: unfinished decays ({unfinished} of {len(self.rows)})."

    def _cost(self, steps: int) -> str:
        tokens, flops = self.tokens(steps), self.flops(steps)
        parts = [f"{steps:,} steps"]
        parts += [f"{show_tokens(tokens)} tokens"] if tokens is not None else []
        parts += [f"{flops:.3g} FLOPs"] if flops is not None else []
        return " = ".join(parts)

    def to_markdown(self) -> str:
        """Claim, table, cost."""
        heads, *rows = map(tuple, self.table())
        table = Grid(heads=heads, rows=tuple(rows), words=heads[len(COLUMNS) - 1 :])
        notes = "\n".join(f"- {note}" for note in self.notes())
        return f"# {self.run}\n\n{self.claim}.\n\n{table.markdown()}\n\n{notes}\n"


def _difference(high: float | None, low: float | None) -> float | None:
    return None if high is None or low is None else high - low


def _range(values: list[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.3f}" for value in (min(values), max(values))))


def make_report(run: Run) -> Report:
    """The report of a trunk with its branches, or of a WSD-S line."""
    rows = [_row(run, member, fork, end) for member in run.walk(rewound=False) for fork, end in member.decays()]
    done = [row for row in rows if row.finished]
    trunk_steps = max((row.end if row.run == "." else row.fork for row in done), default=0)
    return Report(
        run=run.path.resolve().name,
        rows=tuple(sorted(rows, key=lambda row: (row.end, row.fork, row.run))),
        steps_done=run.steps_done,
        trunk_steps=trunk_steps,
        family_steps=trunk_steps + sum(row.end - row.fork for row in done if row.run != "."),
        separate_steps=sum(end for end, _ in {(row.end, row.changed) for row in done}),
        tokens_per_step=run.tokens_per_step,
        parameters=run.identity.parameters,
    )


def _row(trunk: Run, run: Run, fork: int, end: int) -> Row:
    finished = run.has_saved(end)
    losses = run.losses_at(end) if finished else {}
    undecayed = run is not trunk and trunk.identity.schedule.phase(end - 1) is not Phase.DECAY
    return Row(
        run=run.path.relative_to(trunk.path).as_posix(),
        requested=run.identity.requested,
        fork=fork,
        end=end,
        tokens=run.tokens_at(end),
        trunk_loss_at_fork=trunk.losses_at(fork).get("loss"),
        trunk_loss_at_end=trunk.losses_at(end).get("loss") if undecayed else None,
        loss=losses.get("loss"),
        bits_per_byte=losses.get("bits_per_byte"),
        perplexity=losses.get("perplexity"),
        finished=finished,
        differs=describe(run.latest) if run.records else "",
        changed=run.changed,
        control=_control(trunk, run),
        shape=_shape(run, end),
        model=next((folder.relative_to(trunk.path).as_posix() for folder in copies(run, end)[::-1]), None),
    )


def _shape(run: Run, end: int) -> str | None:
    """The shape of the decay that ends at a step."""
    spans = run.identity.schedule.spans()
    return next((segment.shape for _, stop, segment in spans if stop == end and segment.shape != "constant"), None)


def _control(trunk: Run, run: Run) -> str | None:
    """The branch with the same decay as a run that changes more than the lr."""
    plain = (other for other in trunk.branches if not other.changed and run.changed)
    found = [other for other in plain if other.identity.schedule == run.identity.schedule]
    return found[0].path.relative_to(trunk.path).as_posix() if found else None
