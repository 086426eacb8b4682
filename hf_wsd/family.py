"""A family read back from its files: a run, its checkpoints and records, its branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.errors import RecordError
from hf_wsd.history import losses_of, read_history
from hf_wsd.lengths import show_spans
from hf_wsd.lineage import BRANCHES, RECORD, Lineage


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its files tell it: records by step, logged rows, branches.

    >>> from hf_wsd.builders import wsd
    >>> record = Lineage(step=80, kind="pre-decay", schedule=wsd(100, num_decay_steps=20), tokens_per_step=1000)
    >>> rows = ({"step": 80, "eval_loss": 3.5},)
    >>> run = Run(path=Path("RUN"), checkpoints={}, records={80: record}, history=rows, planned=None, branches=())
    >>> list(run.decays()), run.has_saved(100), run.tokens_at(100), run.losses_at(80)
    ([(80, 100)], False, 100000, {'loss': 3.5})
    >>> [member.path.name for member in run.walk()]
    ['RUN']
    """

    path: Path
    checkpoints: Mapping[int, Path]
    records: Mapping[int, Lineage]
    history: tuple[Mapping[str, Any], ...]
    planned: Lineage | None
    branches: tuple[Run, ...]

    @property
    def latest(self) -> Lineage:
        """The newest record of a checkpoint.

        Raises:
            RecordError: the run has none.
        """
        if not self.records:
            raise RecordError(f"{self.path} has no checkpoint with a record ({RECORD}): has the run saved one yet?")
        return self.records[max(self.records)]

    @property
    def identity(self) -> Lineage:
        """The record that says what the run is, also of a branch that has saved nothing yet."""
        if self.planned and not (self.rewound and self.records):
            return self.planned
        return self.latest

    @property
    def rewound(self) -> bool:
        """Whether the run is another's trunk, rewound past some batches: the trunk of a family of its own."""
        return self.planned is not None and self.planned.intent == "rewind"

    @property
    def changed(self) -> str:
        """In what its decay differs from one that only lowers the lr, in a few words; "" where it does not."""
        if self.planned and self.rewound:
            return f"without the batches of updates {show_spans(self.planned.moved_data)}"
        return (self.latest if self.records else self.identity).changed

    @property
    def steps_done(self) -> int:
        """Updates done, as far as records and history tell; a branch that has not begun is at its fork point."""
        begin = self.planned.step if self.planned else 0
        return max([begin, *self.records, *(int(row["step"]) for row in self.history)])

    @property
    def family_updates(self) -> int:
        """Updates that the run and its branches have trained, each counted once."""
        return sum(one.steps_done - (one.planned.step if one.planned else 0) for one in self.walk())

    @property
    def finished(self) -> bool:
        """Whether the run's last step has been saved."""
        return self.identity.last_step is not None and self.has_saved(self.identity.last_step)

    def has_saved(self, step: int) -> bool:
        """Whether a checkpoint at `step`, or a later one, has been saved."""
        return max(self.records, default=0) >= step

    def decays(self) -> Iterator[tuple[int, int]]:
        """Fork point and end of each decay that the run itself makes: one of a branch, one a cycle of a WSD-S line."""
        fork, begin = 0, self.planned.step if self.planned else 0
        for step, kind in self.identity.schedule.checkpoint_steps().items():
            if kind == "pre-decay":
                fork = step
            else:
                if step > begin:
                    yield fork, step
                fork = step  # a cycle without a stable phase decays from where the last one ended

    def tokens_at(self, step: int) -> int | None:
        """Tokens seen after that many updates: as counted by the run, else by the tokens of a step."""
        if step in self.records and self.records[step].tokens is not None:
            return self.records[step].tokens
        per_step = self.identity.tokens_per_step
        return None if per_step is None else step * per_step

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens of one update where they are known and the same in the whole family, else None."""
        known = {member.identity.tokens_per_step for member in self.walk()}
        return known.pop() if len(known) == 1 else None

    def losses_at(self, step: int) -> Mapping[str, float]:
        """What an evaluation after `step` updates gave, without the prefix `eval_`; empty where there was none."""
        losses: dict[str, float] = {}
        for row in self.history:  # a row for each evaluation set: eval_en_loss, eval_de_loss
            if row["step"] == step and any(key.startswith("eval_") and key.endswith("_loss") for key in row):
                losses |= losses_of(row)
        return losses or (self.records[step].losses if step in self.records else {})

    def walk(self, *, rewound: bool = True) -> Iterator[Run]:
        """This run, then its branches and theirs; those that were rewound are families of their own."""
        yield self
        for branch in self.branches:
            if rewound or not branch.rewound:
                yield from branch.walk(rewound=rewound)


def read_run(path: Path | str) -> Run:
    """The run in a folder, with all its branches.

    Raises:
        RecordError: the folder has no record at all, or one that is damaged.

    >>> from tempfile import TemporaryDirectory
    >>> from hf_wsd.builders import wsd
    >>> with TemporaryDirectory() as folder:
    ...     checkpoint = Path(folder) / "checkpoint-80"
    ...     checkpoint.mkdir()
    ...     Lineage(step=80, kind="pre-decay", schedule=wsd(100, num_decay_steps=20)).write(checkpoint)
    ...     run = read_run(folder)
    >>> run.steps_done, run.latest.kind, run.finished
    (80, 'pre-decay', False)
    """
    path = Path(path)
    checkpoints = saved_checkpoints(path)
    records = {step: Lineage.read(folder) for step, folder in checkpoints.items() if (folder / RECORD).exists()}
    planned = Lineage.read(path) if (path / RECORD).exists() else None
    if not records and planned is None:
        raise RecordError(
            f"{path} is no run of hf_wsd: it has no checkpoint with a {RECORD}. Give the --output_dir of a run that "
            "was trained with --lr_scheduler_type wsd, wsd_s, cyclic_cosine or multi_step"
        )
    branches = (read_run(folder) for folder in (path / BRANCHES).glob("*") if (folder / RECORD).exists())
    return Run(
        path=path,
        checkpoints=checkpoints,
        records=records,
        history=tuple(read_history(path)),
        planned=planned,
        branches=tuple(sorted(branches, key=lambda b: (b.identity.schedule.total_steps or 0, b.path.name))),
    )
