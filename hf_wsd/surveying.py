"""The survey of a run's landscape: which points are measured, and what follows. A repeated survey goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hf_wsd.errors import DataError
from hf_wsd.family import Run
from hf_wsd.history import to_json
from hf_wsd.landscape import Floats, Geometry, Mix, added, paths, read_places, step_between
from hf_wsd.terrain import Files, Terrain, mark_of
from hf_wsd.valley import Beside, Decayed, Landscape, Line, Slice, Spot, Turn

MEASURED = "_landscape.jsonl"  # the leading underscore keeps it out of Trainer's uploads


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How finely it is looked at: points of a line, and of the slice along and across.

    >>> Grid().points
    11
    """

    points: int = 11
    along: int = 19
    across: int = 13


class Measured:
    """The measurements of a run, kept in a file as they are made.

    Args:
        file: one line of JSON a measurement; a line torn by a crash is made again.
        terrain: measures what is not in the file.
        marks: of the checkpoints' weights.
        tell: called with the number of measurements made so far.
    """

    def __init__(
        self, file: Path, terrain: Terrain, marks: Mapping[str, str], tell: Callable[[int], None] = lambda _: None
    ) -> None:
        self.file, self.terrain, self.marks, self.tell = file, terrain, marks, tell
        self.data = terrain.mark
        self.known = dict[str, list[float]]()
        self.made = 0
        content = file.read_bytes() if file.exists() else b""
        self.torn = "" if content.endswith(b"\n") or not content else "\n"  # ends what a kill has left
        for line in content.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self.known[row["key"]] = [float(value) for value in row["found"]]
        if terrain.accelerator and terrain.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            self.known = broadcast_object_list([self.known])[0]  # all processes must measure the same points

    def losses(self, point: Mix) -> Floats:
        """The loss of each batch at a point."""
        key = mark_of(point, self.marks, "loss", self.data)
        return self._look_up(key, lambda: self.terrain.losses(point), what="loss", point=point)

    def curvature(self, point: Mix, direction: Mix) -> Floats:
        """The curvature of each batch's loss along a direction."""
        key = mark_of(point, self.marks, "curvature", mark_of(direction, self.marks), self.data)
        return self._look_up(key, lambda: self.terrain.curvature(point, direction), what="curvature", point=point)

    def _look_up(self, key: str, measure: Callable[[], list[float]], **row: Any) -> Floats:
        if key not in self.known:
            self.known[key] = measure()
            if self.terrain.accelerator is None or self.terrain.accelerator.is_main_process:
                with self.file.open("a", encoding="utf-8") as stream:
                    stream.write(self.torn + to_json({"key": key, "found": self.known[key]} | row) + "\n")
            self.made, self.torn = self.made + 1, ""
            self.tell(self.made)
        return np.array(self.known[key])

    def loss(self, point: Mix) -> float:
        """The mean loss at a point."""
        return self.mean(self.losses(point))

    def mean(self, found: Floats) -> float:
        """The mean over batches, by their rows."""
        return float(np.average(found, weights=self.terrain.rows))


def standard_error(values: Floats) -> float:
    """Of the mean of two values or more.

    >>> standard_error(np.array([1.0, 3.0]))
    1.0
    """
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def survey(
    run: Run,
    model: Any,
    batches: list[Mapping[str, Any]],
    *,
    grid: Grid | None = None,
    accelerator: Any = None,
    tell: Callable[[int], None] = lambda _: None,
) -> Landscape:
    """The landscape of a run's family; what `RUN/_landscape.jsonl` has of it is not measured again.

    Args:
        run: `read_run(folder)`, with at least two finished decays.
        model: of the run's architecture; its weights are overwritten.
        batches: of evaluation data, at least two: error bars come from their differences.
        grid: how finely; None is the default.
        accelerator: of several devices.
        tell: called with the number of measurements made so far.

    Raises:
        FitError: fewer than two finished decays. CheckpointError: one that cannot be read. DataError: one batch.
    """
    if len(batches) < 2:
        raise DataError(
            f"error bars take at least two batches of evaluation data, and there is {len(batches)}: more --blocks, or "
            "a smaller --batch_size"
        )
    family, grid = read_places(run), grid or Grid()
    with Files(paths(family, run.path)) as files:
        gram, marks = files.gram()
        terrain = Terrain(model, batches, files, accelerator)
        geometry, measured = Geometry(family=family, gram=gram), Measured(run.path / MEASURED, terrain, marks, tell)
        return Landscape(
            run=run.path.resolve().name,
            evaluation={"blocks": int(terrain.rows.sum()), "batches": len(terrain.rows), "mark": terrain.mark},
            spots=tuple(_spots(geometry, measured)),
            decays=tuple(_decayed(geometry, measured, at) for at in range(len(family.descents))),
            newest=_newest(geometry, measured),
            lines=tuple(_lines(geometry, measured, grid.points)),
            slice=_slice(geometry, measured, grid),
            turns=tuple(Turn(**_named(turn)) for turn in geometry.updates()),
            left_out=family.left_out,
        )


def _named(turn: tuple[str, str, str, float, float, float]) -> dict[str, Any]:
    return dict(zip(("a", "b", "c", "cosine", "cosine_across", "along"), turn, strict=True))


def _spots(geometry: Geometry, measured: Measured) -> Iterator[Spot]:
    for name, place in geometry.family.places.items():
        along, across = geometry.coordinates(name)
        yield Spot(
            name=name,
            step=place.step,
            phase=place.phase,
            multiplier=place.multiplier,
            lr_sum=place.lr_sum,
            along=along,
            across=across,
            loss=measured.loss({name: 1.0}),
        )


def _decayed(geometry: Geometry, measured: Measured, at: int) -> Decayed:
    descent, river = geometry.family.descents[at], geometry.river(at)
    hill = geometry.unit(geometry.across(step_between(descent.end, descent.fork), river))
    along, across = (measured.curvature({descent.end: 1.0}, way) for way in (river, hill))
    return Decayed(
        end=descent.end,
        loss=measured.loss({descent.end: 1.0}),
        beside=tuple(_beside(geometry, measured, at, name) for name in (descent.fork, *descent.inside)),
        curvature_along=measured.mean(along),
        curvature_across=measured.mean(across),
        curvature_error=standard_error(across - along),
    )


def _newest(geometry: Geometry, measured: Measured) -> Beside | None:
    """The trunk's last checkpoint, beside the last river carried on straight; None where its decay is there."""
    name, last = geometry.family.trunk[-1].name, len(geometry.family.descents) - 1
    return None if name == geometry.family.descents[last].fork else _beside(geometry, measured, last, name)


def _beside(geometry: Geometry, measured: Measured, at: int, name: str) -> Beside:
    place, end, foot = geometry.family.places[name], geometry.family.descents[at].end, geometry.foot(name, at)
    hill_loss = measured.losses({name: 1.0}) - measured.losses(foot)
    return Beside(
        name=name,
        multiplier=place.multiplier,
        lr_sum=place.lr_sum,
        behind=geometry.inner(step_between(name, end), geometry.river(at)),
        distance=geometry.length(added({name: 1.0}, foot, -1.0)),
        hill_loss=measured.mean(hill_loss),
        error=standard_error(hill_loss),
    )


def _lines(geometry: Geometry, measured: Measured, points: int) -> Iterator[Line]:
    descents = geometry.family.descents
    ways = [("stable-stable", a.fork, b.fork) for a, b in pairwise(descents)]
    ways += [("stable-decayed", one.fork, one.end) for one in descents]
    ways += [("decayed-decayed", a.end, b.end) for a, b in pairwise(descents)]
    at = [index / (points - 1) for index in range(points)]
    for kind, start, end in ways:
        losses = tuple(measured.loss({start: 1 - t, end: t}) for t in at)
        length = geometry.length(step_between(start, end))
        yield Line(kind=kind, start=start, end=end, length=length, at=tuple(at), losses=losses)


def _slice(geometry: Geometry, measured: Measured, grid: Grid) -> Slice:
    """The plane of the last decay: its fork point, its decayed model and the one before."""
    before, last = geometry.family.descents[-2:]
    river = geometry.river(len(geometry.family.descents) - 1)
    hill = geometry.unit(geometry.across(step_between(last.end, last.fork), river))
    ways = [step_between(last.end, name) for name in (before.end, last.end, last.fork, *last.inside)]
    corners = [(geometry.inner(way, river), geometry.inner(way, hill)) for way in ways]
    length, height = -corners[0][0], corners[2][1]
    even = np.linspace(-1.0, 0.3, grid.along)
    along = [float(x) for x in 1.15 * length * np.sign(even) * np.abs(even) ** 1.5]  # closer at the decayed model
    across = [float(y) for y in np.linspace(-0.6 * height, 1.4 * height, grid.across)]
    losses = tuple(
        tuple(measured.loss(added(added({last.end: 1.0}, river, x), hill, y)) for x in along) for y in across
    )
    return Slice(
        before=before.end,
        end=last.end,
        fork=last.fork,
        along=tuple(along),
        across=tuple(across),
        losses=losses,
        corners=tuple(corners[:3]),
        inside=tuple(corners[3:]),
    )
