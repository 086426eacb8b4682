"""What of a family is published: a revision for each decayed model, and for fork points that others may go on from."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_wsd.errors import PublishError
from hf_wsd.family import Run
from hf_wsd.lengths import show_tokens
from hf_wsd.lineage import BRANCHES, Lineage
from hf_wsd.retention import copies
from hf_wsd.segment import Phase


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One checkpoint of a family under the name that it has on the hub.

    Args:
        name: of the branch on the hub: decay-step1000-tokens3.3M, stable-step800-tokens2.6M.
        kind: "decay" (a finished model) or "stable" (a fork point).
        family: the trunk with all its branches.
        run: the member of the family that saved it.
        step: updates done.
        fork: the step at which its decay started; None for a fork point.
        checkpoint: its folder.
        record: the checkpoint's.
    """

    name: str
    kind: str
    family: Run
    run: Run
    step: int
    fork: int | None
    checkpoint: Path
    record: Lineage

    @property
    def tokens(self) -> int | None:
        """Tokens seen, those of the trunk included."""
        return self.run.tokens_at(self.step)

    @property
    def losses(self) -> Mapping[str, float]:
        """What the evaluation at its step gave; empty where there was none."""
        return self.run.losses_at(self.step)


def revisions(family: Run, *, stable: Collection[int] | None = ()) -> tuple[Revision, ...]:
    """The revisions of a family, by rising step; the last decayed model is the longest.

    A name never changes: where two models end at one step, the one that was finished first has the short name, and the
    others have the name of their branch behind it, or `trunk`.

    Args:
        family: the trunk.
        stable: steps of fork points to publish too; None is all that are kept.

    Raises:
        PublishError: no decayed model is finished, or a step is none that can be published.
    """
    decays = sorted(_decays(family), key=lambda found: (found[2], found[0].records[found[2]].saved_at))
    named: dict[str, Revision] = {}
    for run, fork, end in decays:
        name = _name(run, "decay", end)
        name = name if name not in named else f"{name}-{_place(run, family)}"
        named[name] = _revision(name, "decay", family, run, end, fork)
    for step in _fork_points(family, stable):
        name = _name(family, "stable", step)
        named[name] = _revision(name, "stable", family, family, step, None)
    if not named:
        raise PublishError(
            f"{family.path} has no finished decay ({family.steps_done} steps are done): `hf-wsd decay` trains one, "
            "--stable publishes fork points"
        )
    return tuple(sorted(named.values(), key=lambda revision: (revision.step, revision.kind, revision.name)))


def _decays(family: Run) -> Iterator[tuple[Run, int, int]]:
    """The finished decays of a family whose model is still there."""
    for member in family.walk(rewound=False):
        for fork, end in member.decays():
            if end in member.records and copies(member, end):
                yield member, fork, end


def _fork_points(family: Run, wanted: Collection[int] | None) -> list[int]:
    there = [
        step
        for step, record in family.records.items()
        if step and copies(family, step) and record.schedule.phase(step - 1) is Phase.STABLE
    ]
    if wanted is None:
        return [step for step in there if family.records[step].kind in ("pre-decay", "fork", "kept")]
    if missing := sorted(set(wanted) - set(there)):
        raise PublishError(
            f"no checkpoint of the stable phase at step {', '.join(map(str, missing))} in {family.path}: there are "
            f"those of step {', '.join(map(str, there)) or '(none)'}"
        )
    return sorted(wanted)


def _name(run: Run, kind: str, step: int) -> str:
    tokens = run.tokens_at(step)
    return f"{kind}-step{step}" + ("" if tokens is None else f"-tokens{show_tokens(float(f'{tokens:.2g}'))}")


def _place(run: Run, family: Run) -> str:
    """Where in its family a run is, as a part of a branch's name in git; the trunk's folder is nobody's business."""
    folders = run.path.resolve().relative_to(family.path.resolve()).parts
    place = "-".join(folder for folder in folders if folder != BRANCHES) or "trunk"
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", place).strip("-")


def _revision(name: str, kind: str, family: Run, run: Run, step: int, fork: int | None) -> Revision:
    return Revision(
        name=name,
        kind=kind,
        family=family,
        run=run,
        step=step,
        fork=fork,
        checkpoint=copies(run, step)[-1],
        record=run.records[step],
    )
