"""The river valley of one's own run: where its checkpoints lie along the river and across it.

Decayed models lie on the river; the line from one to the next is its direction. A checkpoint of the stable phase lies
on a hill beside it: what is left of (stable - its decayed) at a right angle to the river is the way across
(arXiv 2410.05192). All distances follow from the inner products of the checkpoints, which are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_wsd.errors import FitError
from hf_wsd.family import Run
from hf_wsd.segment import Phase

Floats = NDArray[np.float64]
Mix = Mapping[str, float]  # weight of each checkpoint in a point (they sum to 1) or in a direction (to 0)
MOST = 24  # checkpoints that are neither fork point nor decayed model; of more, as many evenly spaced ones


@dataclass(frozen=True, kw_only=True)
class Place:
    """A checkpoint of a family.

    Args:
        name: its step; of a branch, with the branch's name before it.
        step: updates done.
        phase: "stable", "decay" or, at the end of a decay, "decayed".
        multiplier: lr of its last update / peak lr.
        lr_sum: sum of the lrs of its updates, in multiples of the peak lr.
        path: its folder, relative to the trunk's.

    >>> Place(name="80", step=80, phase="stable", multiplier=1.0, lr_sum=75.0, path="checkpoint-80").name
    '80'
    """

    name: str
    step: int
    phase: str
    multiplier: float
    lr_sum: float
    path: str


@dataclass(frozen=True, kw_only=True)
class Descent:
    """One decay by the names of its checkpoints: fork point, those inside, decayed model."""

    fork: str
    inside: tuple[str, ...]
    end: str


@dataclass(frozen=True, kw_only=True)
class FamilyPlaces:
    """The checkpoints of a family and its decays, one of each fork point, by the step of their end.

    Args:
        places: by name, by rising step.
        descents: at least two.
        left_out: checkpoints between others that are not looked at.
    """

    places: Mapping[str, Place]
    descents: tuple[Descent, ...]
    left_out: int = 0

    @property
    def trunk(self) -> list[Place]:
        """The checkpoints of the stable phase."""
        return [place for place in self.places.values() if place.phase == "stable"]


def read_places(run: Run, *, most: int = MOST) -> FamilyPlaces:
    """The checkpoints of a trunk, or of a WSD-S line, and of its branches; decays with other data are left out.

    Args:
        run: `read_run(folder)`.
        most: checkpoints beside fork points and decayed models.

    Raises:
        FitError: fewer than two fork points with a finished decay: the river has no direction.
    """
    places = dict[str, Place]()
    found = dict[str, Descent]()
    for descent in _collect(run, run, places, {}):
        before = found.get(descent.fork)
        if before is None or places[descent.end].step > places[before.end].step:
            found[descent.fork] = descent
    descents = tuple(sorted(found.values(), key=lambda d: (places[d.end].step, d.end)))
    if len(descents) < 2:
        raise FitError(
            f"{run.path} has {len(descents)} fork points with a finished decay, and a river needs 2: its direction is "
            "that from one decayed model to the next. `hf-wsd decay RUN --budgets ...` trains more"
        )
    needed = {name for descent in descents for name in (descent.fork, descent.end)}
    others = [name for name in places if name not in needed]
    chosen = {others[at] for at in np.linspace(0, len(others) - 1, min(most, len(others)), dtype=int)}
    kept = {n: p for n, p in sorted(places.items(), key=lambda item: item[1].step) if n in needed | chosen}
    inside = (tuple(name for name in descent.inside if name in kept) for descent in descents)
    descents = tuple(Descent(fork=d.fork, inside=names, end=d.end) for d, names in zip(descents, inside, strict=True))
    return FamilyPlaces(places=kept, descents=descents, left_out=len(places) - len(kept))


def _collect(trunk: Run, run: Run, places: dict[str, Place], above: Mapping[int, str]) -> Iterator[Descent]:
    """Fill `places` with a run and its branches; the decays of both."""
    schedule, names = run.identity.schedule, dict(above)
    ends = {end: fork for fork, end in run.decays()}
    for step, path in run.checkpoints.items():
        phase = schedule.phase(step - 1) if step else Phase.WARMUP
        if phase is not Phase.WARMUP:
            name = f"{step}" if run is trunk else f"{run.path.name}@{step}"
            names[step] = name
            places[name] = Place(
                name=name,
                step=step,
                phase="decayed" if step in ends else phase.value,
                multiplier=schedule(step - 1),
                lr_sum=sum(schedule.multipliers(0, step)),
                path=path.relative_to(trunk.path).as_posix(),
            )
    for end, fork in ends.items():
        if end in run.checkpoints and fork in names and places[names[fork]].phase == "stable":
            inside = tuple(names[step] for step in run.checkpoints if fork < step < end)
            yield Descent(fork=names[fork], inside=inside, end=names[end])
    for branch in run.branches:
        if not branch.rewound and not branch.changed:
            yield from _collect(trunk, branch, places, names)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Lengths and angles between checkpoints, from their inner products alone.

    Args:
        family: the checkpoints.
        gram: [n, n] inner products of (checkpoint - first checkpoint), in the order of `family.places`.
    """

    family: FamilyPlaces
    gram: Floats

    def vector(self, mix: Mix) -> Floats:
        """The weights of a mix in the order of the checkpoints."""
        return np.array([mix.get(name, 0.0) for name in self.family.places])

    def inner(self, one: Mix, other: Mix) -> float:
        """The inner product of two directions."""
        return float(self.vector(one) @ self.gram @ self.vector(other))

    def length(self, direction: Mix) -> float:
        """The length of a direction."""
        return float(np.sqrt(max(0.0, self.inner(direction, direction))))

    def cosine(self, one: Mix, other: Mix) -> float:
        """The cosine of the angle between two directions; 0 where one has no length."""
        lengths = self.length(one) * self.length(other)
        return self.inner(one, other) / lengths if lengths else 0.0

    def unit(self, direction: Mix) -> Mix:
        """The direction with length 1.

        Raises:
            FitError: it has none: the two checkpoints are the same.
        """
        length = self.length(direction)
        if length == 0.0:
            raise FitError(f"checkpoints {' and '.join(sorted(direction))} have the same weights: no direction")
        return scaled(direction, 1 / length)

    def across(self, direction: Mix, along: Mix) -> Mix:
        """What is left of a direction at a right angle to the unit direction `along`."""
        return added(direction, along, -self.inner(direction, along))

    def river(self, at: int) -> Mix:
        """The unit direction of the river at decay `at`: from the decayed model before it (first: to the next one)."""
        ends = [descent.end for descent in self.family.descents]
        first = max(at, 1)
        return self.unit({ends[first]: 1.0, ends[first - 1]: -1.0})

    def foot(self, name: str, at: int) -> Mix:
        """The point of the river beside a checkpoint: on the line through the decayed model of decay `at`."""
        end, river = self.family.descents[at].end, self.river(at)
        return added({end: 1.0}, river, self.inner(step_between(end, name), river))

    def axes(self) -> tuple[Mix, Mix]:
        """Two unit directions for the whole run: along (first to last decayed model), across (the last hill)."""
        first, last = self.family.descents[0], self.family.descents[-1]
        along = self.unit(step_between(first.end, last.end))
        return along, self.unit(self.across(step_between(last.end, last.fork), along))

    def coordinates(self, name: str) -> tuple[float, float]:
        """Where a checkpoint lies on `axes`, seen from the first decayed model."""
        step = step_between(self.family.descents[0].end, name)
        along, across = self.axes()
        return self.inner(step, along), self.inner(step, across)

    def updates(self) -> Iterator[tuple[str, str, str, float, float, float]]:
        """Of three successive checkpoints of the trunk: names, and the cosine between the two ways.

        The three cosines: of the whole ways; of their parts across; and the sign of both along (+1: both one way).
        """
        along, _ = self.axes()
        names = [place.name for place in self.family.trunk]
        for (a, b), (_, c) in pairwise(pairwise(names)):
            one, two = step_between(a, b), step_between(b, c)
            signs = np.sign(self.inner(one, along)) * np.sign(self.inner(two, along))
            parts = self.across(one, along), self.across(two, along)
            yield a, b, c, self.cosine(one, two), self.cosine(*parts), float(signs)


def step_between(start: str, end: str) -> Mix:
    """The direction from one checkpoint to another.

    >>> step_between("80", "100")
    {'100': 1.0, '80': -1.0}
    """
    return added({end: 1.0}, {start: 1.0}, -1.0)


def added(one: Mix, other: Mix, factor: float = 1.0) -> Mix:
    """One mix plus `factor` times another.

    >>> added({"80": 1.0}, {"100": 1.0, "80": -1.0}, 0.25)
    {'80': 0.75, '100': 0.25}
    """
    return {name: one.get(name, 0.0) + factor * other.get(name, 0.0) for name in dict.fromkeys([*one, *other])}


def scaled(mix: Mix, factor: float) -> Mix:
    """A mix times a number.

    >>> scaled({"80": 1.0}, 0.5)
    {'80': 0.5}
    """
    return {name: factor * weight for name, weight in mix.items()}


def paths(family: FamilyPlaces, run: Path) -> dict[str, Path]:
    """The folder of each checkpoint by its name."""
    return {name: run / place.path for name, place in family.places.items()}
