"""What a survey of a run's landscape found, as `RUN/landscape.json` keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_wsd.errors import DataError

SCHEMA = 2
LANDSCAPE = "landscape.json"
MANY = 4  # turns told in a sentence


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A checkpoint: where it lies, and its loss.

    Args:
        name, step, phase, multiplier, lr_sum: as in `landscape.Place`.
        along, across: coordinates on the axes of the whole run.
        loss: in nats.
    """

    name: str
    step: int
    phase: str
    multiplier: float
    lr_sum: float
    along: float
    across: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A checkpoint of a decay against the river there.

    Args:
        name: of the checkpoint.
        multiplier: lr of its last update / peak lr.
        lr_sum: of its updates, in multiples of the peak lr.
        behind: how far it lies behind the decayed model along the river.
        distance: from the river.
        hill_loss: its loss above that of the river beside it: what moving across, and no further, would remove.
        error: standard error of `hill_loss`, over batches of the same evaluation data.
    """

    name: str
    multiplier: float
    lr_sum: float
    behind: float
    distance: float
    hill_loss: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Decayed:
    """One decay, from the fork point over the checkpoints inside to the decayed model.

    Args:
        end: name of the decayed model.
        loss: of it.
        beside: fork point first, decayed model left out: by definition it lies on the river.
        curvature_along, curvature_across: second derivative of the loss at the decayed model, along the river and
            across it, by unit of length.
        curvature_error: standard error of their difference, over batches of the same evaluation data.
    """

    end: str
    loss: float
    beside: tuple[Beside, ...]
    curvature_along: float
    curvature_across: float
    curvature_error: float

    @property
    def fork(self) -> Beside:
        """The fork point."""
        return self.beside[0]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Losses along the straight line between two checkpoints: from `start` (0) to `end` (1)."""

    kind: str
    start: str
    end: str
    length: float
    at: tuple[float, ...]
    losses: tuple[float, ...]

    def lr_sums(self, of: Mapping[str, float]) -> list[float]:
        """For each point the sum of lr between those of both ends, which are given by name."""
        return [float(x) for x in np.interp(self.at, (0, 1), (of[self.start], of[self.end]))]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Losses in the plane through three checkpoints: a decayed model, the next one, and its fork point.

    Args:
        before, end, fork: their names. `end` is the origin; `before` lies on the axis along.
        along, across: coordinates of the grid.
        losses: [across, along].
        corners: coordinates of before, end and fork.
        inside: those of the checkpoints inside the decay, projected.
    """

    before: str
    end: str
    fork: str
    along: tuple[float, ...]
    across: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    corners: tuple[tuple[float, float], ...]
    inside: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Two successive ways between checkpoints of the trunk, a to b and b to c: how they turn.

    Args:
        cosine: of the angle between both.
        cosine_across: the same without their parts along the river; below 0 they swing back.
        along: +1 where both go one way along the river, -1 where not.
    """

    a: str
    b: str
    c: str
    cosine: float
    cosine_across: float
    along: float


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """All that a survey found.

    Args:
        run: the run's name.
        evaluation: on how much and which data.
        spots: the checkpoints, by rising step.
        decays: by rising end.
        newest: the trunk's last checkpoint, where that is past the last fork point with a decay; the river beside it is
            the last one, carried on straight.
        lines, slice, turns: see there.
        left_out: checkpoints that were not looked at.
    """

    run: str
    evaluation: Mapping[str, Any]
    spots: tuple[Spot, ...]
    decays: tuple[Decayed, ...]
    newest: Beside | None
    lines: tuple[Line, ...]
    slice: Slice
    turns: tuple[Turn, ...]
    left_out: int = 0

    @property
    def trunk(self) -> list[Spot]:
        """The checkpoints of the stable phase."""
        return [spot for spot in self.spots if spot.phase == "stable"]

    @property
    def still_on_the_hill(self) -> str:
        """The hill loss at the last fork point that has a decayed model: what a decay there still had to remove."""
        fork, end = self.decays[-1].fork, self.decays[-1]
        losses = {spot.name: spot.loss for spot in self.spots}
        loss, newest = losses[fork.name], self.newest
        later = newest and (
            f" The trunk has gone on to checkpoint {newest.name}, loss {losses[newest.name]:.3f}: "
            f"{newest.hill_loss:.3f} of it (+-{newest.error:.3f}) is hill loss, if the river goes on straight."
        )
        hill = f"{fork.hill_loss:.3f} of it (+-{fork.error:.3f}) is hill loss, which a decay still has to remove"
        rest = f"{end.loss:.3f}: progress along the river was {loss - fork.hill_loss - end.loss:.3f}"
        told = (
            f"At checkpoint {fork.name} the trunk's loss is {loss:.3f}; {hill}. The decay from there ended at {rest}."
        )
        return told + (later or "")

    @property
    def thinned_out(self) -> list[str]:
        """A sentence on the checkpoints that were not looked at, if there are any."""
        return [f"{self.left_out} checkpoints between others were not looked at."] if self.left_out else []

    @property
    def swings(self) -> str:
        """How the ways between successive checkpoints of the trunk turn, whole and across the river alone."""
        turns = [f"{t.cosine:.2f} and {t.cosine_across:.2f} ({t.a}, {t.b}, {t.c})" for t in self.turns[-MANY:]]
        return (
            "Cosine between successive ways of the trunk, whole and across the river alone (below 0 it swings back)"
            f"{', the last' if len(self.turns) > MANY else ''}: {', '.join(turns) or 'fewer than three checkpoints'}."
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"schema": SCHEMA, "hill_loss": self.still_on_the_hill} | asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Landscape:
        """The landscape of `to_dict`.

        Raises:
            DataError: it is none, or of another version.
        """
        try:
            if told["schema"] != SCHEMA:
                raise ValueError(f"schema {told['schema']}, and {SCHEMA} is known")
            kept = {field.name: told[field.name] for field in fields(cls)}
            kept["spots"] = tuple(Spot(**one) for one in told["spots"])
            beside = [{"beside": tuple(Beside(**b) for b in one["beside"])} for one in told["decays"]]
            kept["decays"] = tuple(Decayed(**one | more) for one, more in zip(told["decays"], beside, strict=True))
            kept["newest"] = told["newest"] and Beside(**told["newest"])
            kept["lines"] = tuple(Line(**one) for one in told["lines"])
            kept["slice"] = Slice(**told["slice"])
            kept["turns"] = tuple(Turn(**one) for one in told["turns"])
            return cls(**kept)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no landscape: {error}. Repeat `python recipes/landscape.py RUN`") from error


def read_landscape(run: Path) -> Landscape | None:
    """What `RUN/landscape.json` says; None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    return load_landscape(run / LANDSCAPE) if (run / LANDSCAPE).exists() else None


def load_landscape(file: Path) -> Landscape:
    """The landscape in a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    return Landscape.from_dict(told)
