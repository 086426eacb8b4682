"""Phases, and the stretches of which a schedule is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hf_wsd.checks import count, ratio
from hf_wsd.errors import ScheduleError, ShapeError, unknown
from hf_wsd.shape_lookup import check_curve, find_shape, read_params
from hf_wsd.shapes import SHAPES, WARMUP_SHAPES


class Phase(StrEnum):
    """What a stretch of updates is for."""

    WARMUP = "warmup"
    STABLE = "stable"
    DECAY = "decay"

    @property
    def number(self) -> int:
        """0 warm-up, 1 stable, 2 decay: trackers draw numbers, not words.

        >>> Phase.DECAY.number
        2
        """
        return list(Phase).index(self)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of updates that follows one curve.

    Args:
        phase: what the stretch is for.
        steps: number of updates, at least 1; None is open-ended (a constant, and last in its schedule).
        start: multiplier of the first update, in [0, 1].
        end: multiplier that the curve tends to, in [0, 1].
        shape: "constant", a warm-up shape in phase WARMUP, else a decay shape.
        shape_params: parameters of the decay shape; kept as pairs of name and number, defaults filled in.

    Raises:
        ScheduleError: the numbers do not fit. ShapeError: the shape is unknown or cannot reach `end`.

    >>> warmup = Segment(phase=Phase.WARMUP, steps=10, start=0.0, shape="linear")
    >>> warmup.multiplier(5), str(warmup)
    (0.5, 'warmup linear 0 -> 1, 10 steps')
    """

    phase: Phase
    steps: int | None
    start: float = 1.0
    end: float = 1.0
    shape: str = "constant"
    shape_params: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "phase", Phase(self.phase))
        except ValueError:
            raise ScheduleError(unknown("phase", self.phase, list(Phase))) from None
        if self.steps is not None:
            object.__setattr__(self, "steps", count("steps of a segment", self.steps, at_least=1))
        for name in ("start", "end"):
            ratio(f"{name} of a segment", getattr(self, name))
        if not self.shape_params:
            object.__setattr__(self, "shape_params", ())
        elif self.shape == "constant" or self.phase is not Phase.DECAY:
            raise ShapeError(f"only the shape of a decay has parameters: leave out {self.shape_params!r}")
        if self.shape == "constant":
            if self.start != self.end:
                raise ScheduleError(f"a constant segment cannot go from {self.start:g} to {self.end:g}: name a shape")
            return
        if self.phase is Phase.STABLE:
            raise ScheduleError(f"a stable segment is constant, not {self.shape}")
        find_shape(self.shape, warmup=self.phase is Phase.WARMUP)
        if self.steps is None:
            raise ScheduleError(f"a {self.shape} {self.phase.value} needs a number of steps: only a constant is open")
        if self.phase is Phase.WARMUP:
            if self.end < self.start:
                raise ScheduleError(f"a warm-up cannot fall from {self.start:g} to {self.end:g}")
        else:
            self._check_decay(self.steps)

    def _check_decay(self, steps: int) -> None:
        """A shape that cannot run between these end points fails here, not when the decay starts."""
        if self.end > self.start:
            raise ScheduleError(f"a decay cannot rise from {self.start:g} to {self.end:g}: give a smaller min_lr_ratio")
        params = read_params(self.shape, self.shape_params)
        object.__setattr__(self, "shape_params", tuple(params.items()))
        check_curve(self.shape, start=self.start, end=self.end, steps=steps, params=params)

    @classmethod
    def decay(
        cls,
        steps: int,
        *,
        shape: str = "1-sqrt",
        start: float = 1.0,
        end: float | None = None,
        params: Mapping[str, float] | None = None,
    ) -> Segment:
        """A decay; `end` None is the end that the shape has by itself, else 0.

        Raises:
            ScheduleError, ShapeError: as in `Segment`.

        >>> Segment.decay(20, shape="half-life", params={"half_life": 5}).end
        0.0625
        """
        own = find_shape(shape).own_end
        ratio("start of a decay", start)
        steps = count("decay_steps", steps, at_least=1)
        given = read_params(shape, params)
        if end is None:
            end = 0.0 if own is None else own(start, steps, **given)
        return cls(phase=Phase.DECAY, steps=steps, start=start, end=end, shape=shape, shape_params=tuple(given.items()))

    def multiplier(self, i: int) -> float:
        """Multiplier of update i of this stretch; past its end, `end`."""
        if self.steps is None or i >= self.steps or self.shape == "constant":
            return self.end
        curve = self._curve()
        return curve(i / self.steps, self.start, self.end, self.steps, **dict(self.shape_params))

    def multipliers(self, first: int, last: int) -> list[float]:
        """Multipliers of updates `first` to `last` - 1 of this stretch.

        >>> Segment.decay(4, shape="linear").multipliers(1, 6)
        [0.75, 0.5, 0.25, 0.0, 0.0]
        """
        within = 0 if self.steps is None or self.shape == "constant" else max(0, min(last, self.steps) - first)
        values: list[float] = []
        if within and self.steps is not None:
            curve, steps, start, end, params = self._curve(), self.steps, self.start, self.end, dict(self.shape_params)
            values = [curve(i / steps, start, end, steps, **params) for i in range(first, first + within)]
        return values + [self.end] * (last - first - within)

    def _curve(self) -> Callable[..., float]:
        table = WARMUP_SHAPES if self.phase is Phase.WARMUP else SHAPES
        shape = table.get(self.shape) or find_shape(self.shape)
        return shape.curve

    @property
    def shape_text(self) -> str:
        """The shape with its parameters.

        >>> Segment.decay(20, shape="half-life", params={"half_life": 5}).shape_text
        'half-life(half_life=5)'
        """
        params = ", ".join(f"{name}={value:g}" for name, value in self.shape_params)
        return f"{self.shape}({params})" if params else self.shape

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; parameters are written where the shape has some."""
        data = asdict(self) | {"phase": self.phase.value, "shape_params": dict(self.shape_params)}
        return data if self.shape_params else {key: value for key, value in data.items() if key != "shape_params"}

    def __str__(self) -> str:
        length = "open-ended" if self.steps is None else f"{self.steps} steps"
        at = f"{self.shape_text} {self.start:g} -> {self.end:g}"
        curve = f"at {self.end:g}" if self.shape == "constant" else at
        return f"{self.phase.value} {curve}, {length}"
