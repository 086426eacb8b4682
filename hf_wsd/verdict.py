"""Whether a run behaves like a river valley (arXiv 2410.05192), in numbers, statement by statement.

What does not hold is said, and so is what cannot be seen in the checkpoints that are there. Distance and hill loss
inside a decay are counted from its own end, so that part of their fall is no news: a run that went there straight would
have the part of the decay's sum of lr left that was to come, which is told beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hf_wsd.valley import Decayed, Landscape, Line

ERRORS = 2.0  # standard errors from which a difference counts
FEWEST = 3  # checkpoints of a trend, and statements of a verdict
SAME = 0.002  # nats: repeats of one run differ by as much
IN_ORDER = 0.9  # part of all pairs from which a trend holds
_NOTHING_INSIDE = (
    "no checkpoint inside a decay, and the ends alone show nothing: train decays with more frequent --save_steps"
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement of the picture, whether it holds in this run (None: it cannot be seen), and what was found."""

    claim: str
    holds: bool | None
    found: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All statements.

    >>> flat = Statement(claim="the river is flat", holds=False, found="curvature 2 against 1")
    >>> Verdict(statements=(flat,)).sentence
    'This run does not behave like a river valley: 1 of 1 statements do not hold (not so: the river is flat)'
    """

    statements: tuple[Statement, ...]

    @property
    def behaves(self) -> bool | None:
        """Whether all statements that can be seen hold; None where all do and they are fewer than three."""
        seen = [one.holds for one in self.statements if one.holds is not None]
        return None if len(seen) < FEWEST and all(seen) else all(seen)

    @property
    def sentence(self) -> str:
        """The same in words."""
        count = len(self.statements)
        not_seen = "".join(f"; not to be seen here: {one.claim}" for one in self.statements if one.holds is None)
        failed = [one.claim for one in self.statements if one.holds is False]
        if failed:
            which = f"{len(failed)} of {count} statements do not hold (not so: {'; not so: '.join(failed)})"
            return f"This run does not behave like a river valley: {which}{not_seen}"
        if self.behaves is None:
            return f"Too little is known to say whether this run behaves like a river valley{not_seen}"
        held = sum(one.holds is True for one in self.statements)
        who = "As far as can be seen this run" if not_seen else "This run"
        return f"{who} behaves like a river valley: {held} of {count} statements hold{not_seen}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"verdict": self.sentence, "river_valley": self.behaves} | asdict(self)


def judge(found: Landscape) -> Verdict:
    """What the picture of a river valley says, statement by statement, and what was found of it."""
    rules = (_progress, _swings, _distance, _hill, _falls, _steep, _walk, _floor)
    return Verdict(statements=tuple(rule(found) for rule in rules))


def in_order(pairs: Sequence[tuple[float, float]]) -> float:
    """The part of all pairs of points with different x in which y rises with x; there is at least one.

    >>> in_order([(1.0, 5.0), (2.0, 6.0), (3.0, 5.5)])
    0.6666666666666666
    """
    rising = [(b[0] - a[0]) * (b[1] - a[1]) > 0 for a, b in combinations(pairs, 2) if a[0] != b[0]]
    return sum(rising) / len(rising)


def _progress(found: Landscape) -> Statement:
    claim = "progress along the river grows with the sum of the lr"
    spots = [(spot.lr_sum, spot.along) for spot in found.spots]  # also those of decays: there it is not that of steps
    if len(found.trunk) < FEWEST:
        few = f"{len(found.trunk)} checkpoints of the trunk, {FEWEST} are needed"
        return Statement(claim=claim, holds=None, found=few)
    part, straight = in_order(spots), float(np.corrcoef(np.array(spots).T)[0, 1] ** 2)
    told = f"{part:.0%} of all pairs of {len(spots)} checkpoints; a straight line explains {straight:.0%}"
    return Statement(claim=claim, holds=part >= IN_ORDER, found=told)


def _swings(found: Landscape) -> Statement:
    """What tells a valley with noise from a way straight down, where all else may look alike."""
    claim = "the trunk swings across the river: its next way rather undoes the last"
    if not found.turns:
        return Statement(claim=claim, holds=None, found=f"{len(found.trunk)} checkpoints of the trunk, 3 are needed")
    mean = float(np.mean([turn.cosine_across for turn in found.turns]))
    told = f"mean cosine of {len(found.turns)} pairs of successive ways, across the river alone: {mean:.2f}"
    return Statement(claim=claim, holds=mean < 0, found=told)


def _distance(found: Landscape) -> Statement:
    claim = "the distance across falls with the lr"
    holds = _fall(found, "distance")
    return Statement(claim=claim, holds=holds, found=_NOTHING_INSIDE if holds is None else _shares(found, "distance"))


def _falls(found: Landscape) -> Statement:
    claim = "the hill loss falls with the lr"
    holds = _fall(found, "hill_loss")
    return Statement(claim=claim, holds=holds, found=_NOTHING_INSIDE if holds is None else _shares(found, "hill_loss"))


def _fall(found: Landscape, what: str) -> bool | None:
    """Whether a number falls with the lr in every decay; None where none has a checkpoint inside."""
    decays = [[(b.multiplier, getattr(b, what)) for b in decay.beside] for decay in _with_inside(found)]
    return all(in_order(pairs) == 1 for pairs in decays) if decays else None


def _with_inside(found: Landscape) -> list[Decayed]:
    return [decay for decay in found.decays if len({b.multiplier for b in decay.beside}) > 1]


def _shares(found: Landscape, what: str) -> str:
    """What is left inside each decay of what there was at its fork; to come: the part of the decay's sum of lr."""
    ends = {spot.name: spot.lr_sum for spot in found.spots}
    parts = []
    for decay in _with_inside(found):
        before, whole = getattr(decay.fork, what), ends[decay.end] - decay.fork.lr_sum
        for b in decay.beside[1:]:
            left, to_come = f"{getattr(b, what):.3g} of {before:.3g}", (ends[decay.end] - b.lr_sum) / whole
            parts.append(
                f"{left} at {b.multiplier:.2f} of the peak lr ({b.name}, {to_come:.2f} of its sum of lr to come)"
            )
    return f"left of what there was at the fork: {', '.join(parts)}"


def _hill(found: Landscape) -> Statement:
    claim = "the stable phase runs above the river: moving across alone lowers the loss"
    forks = [decay.fork for decay in found.decays]
    holds = all(fork.hill_loss > ERRORS * fork.error for fork in forks)
    told = ", ".join(f"{fork.hill_loss:.3f} +- {fork.error:.3f} ({fork.name})" for fork in forks)
    return Statement(claim=claim, holds=holds, found=f"hill loss {told}")


def _steep(found: Landscape) -> Statement:
    claim = "the river is flat and the hills are steep: the loss curves less along than across"
    decays = [(d, d.curvature_across - abs(d.curvature_along)) for d in found.decays]
    holds = all(apart > ERRORS * decay.curvature_error for decay, apart in decays)
    told = ", ".join(
        f"{d.curvature_across:.2g} against {d.curvature_along:.2g}, +- {d.curvature_error:.1g} ({d.end})"
        for d, _ in decays
    )
    return Statement(claim=claim, holds=holds, found=f"across against along: {told}")


def _walk(found: Landscape) -> Statement:
    claim = "from one decayed model to the next the loss falls all the way"
    lines = _lines(found, "decayed-decayed")
    rises = [max(0.0, float(np.max(line.losses - np.minimum.accumulate(line.losses)))) for line in lines]
    told = ", ".join(f"{rise:.3f} ({line.start} to {line.end})" for rise, line in zip(rises, lines, strict=True))
    return Statement(claim=claim, holds=max(rises) <= SAME, found=f"rises by {told}")


def _floor(found: Landscape) -> Statement:
    claim = "after the same sum of lr the river runs lower than the trunk"
    lr_sums = {spot.name: spot.lr_sum for spot in found.spots}
    sums, losses = zip(
        *(_chain(_lines(found, f"{kind}-{kind}"), lr_sums) for kind in ("stable", "decayed")), strict=True
    )
    both = [x for x in sorted({*sums[0], *sums[1]}) if sums[1][0] <= x <= sums[0][-1]]
    if not both:
        return Statement(claim=claim, holds=None, found="the trunk ends before the first decayed model does")
    gaps = np.interp(both, sums[0], losses[0]) - np.interp(both, sums[1], losses[1])
    told = f"straight lines between decayed models run {gaps.min():.3f} to {gaps.max():.3f} below those between forks"
    return Statement(claim=claim, holds=bool(gaps.min() > 0), found=told)


def _lines(found: Landscape, kind: str) -> list[Line]:
    return [line for line in found.lines if line.kind == kind]


def _chain(lines: Sequence[Line], lr_sums: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Sums of lr and losses along successive lines."""
    points = {x: loss for line in lines for x, loss in zip(line.lr_sums(lr_sums), line.losses, strict=True)}
    return sorted(points), [points[x] for x in sorted(points)]
