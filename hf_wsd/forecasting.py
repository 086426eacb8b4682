"""`hf-wsd forecast`: the loss that a decay would give, before it is trained; as a table, JSON or a picture."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_wsd.builders import wsd
from hf_wsd.decision import decay_shape
from hf_wsd.errors import FitError, SettingsError, unknown
from hf_wsd.family import Run, read_run
from hf_wsd.forking import samples_per_step
from hf_wsd.lengths import Length, show_tokens, to_steps, total_for_fork
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase, Segment
from hf_wsd.shapes import shape_names

if TYPE_CHECKING:
    from hf_wsd.forecast import Check, Forecast, Forecaster
    from hf_wsd.loss_curves import Curve

Words = list[str] | None
FRACTIONS = (0.1, 0.2)  # of the model's steps, if no length is asked for
HEADS = ("decay from step", "ends at step", "tokens", "shape", "law", "forecast loss", "interval")
_RUN = typer.Argument(metavar="[RUN]", help="A family, or a line of cycles; it may be training.", show_default=False)


def forecast(
    run: Annotated[Path | None, _RUN] = None,
    curve: Annotated[list[Path] | None, typer.Option(help="Tables instead: columns step, lr, loss.")] = None,
    only: Annotated[Words, typer.Option(help="Names of the curves in the files, such as '100/*_24000'.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Updates of the warm-up before the curves in the files.")] = 0,
    fork: Annotated[Words, typer.Option(help="Where the decay starts: steps, or tokens (2M).")] = None,
    trunk: Annotated[str | None, typer.Option(help="The same as 2x the trunk that there is, or a length.")] = None,
    decay_fraction: Annotated[list[float] | None, typer.Option(help="Decay steps / steps of the model.")] = None,
    decay_steps: Annotated[Words, typer.Option(help="The decay in steps (or tokens) instead.")] = None,
    decay_type: Annotated[Words, typer.Option(help=f"Shapes: {shape_names()}.")] = None,
    min_lr_ratio: Annotated[float | None, typer.Option(help="Lr at the end / peak lr.")] = None,
    law: Annotated[str, typer.Option(help="multi-power, annealing or both.")] = "multi-power",
    series: Annotated[str, typer.Option(help="Logged value of a RUN: eval_loss, eval_NAME_loss, loss.")] = "eval_loss",
    level: Annotated[float, typer.Option(min=0.5, max=0.99, help="Part of the intervals that holds the loss.")] = 0.9,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Forecast the loss at the end of a decay that has not been trained, from a family with at least one decay."""
    if (run is None) == (not curve):
        raise SettingsError("forecast from a RUN, or from --curve FILE: one of the two")
    if fork and trunk:
        raise SettingsError("--fork and --trunk both say where the decay starts: give one of them")
    if decay_steps and decay_fraction:
        raise SettingsError("--decay-steps and --decay-fraction both say how long the decay is: give one of them")
    if plot and plot.suffix not in (".png", ".svg", ".pdf"):
        raise SettingsError(f"a picture is a .png, .svg or .pdf, not {plot.name}")
    if plot and not plot.parent.is_dir():
        raise SettingsError(f"there is no folder {plot.parent} for the picture")
    data = _of_run(read_run(run), series) if run else _of_files(curve or [], warmup, only or [])
    forecasters = read_laws(law, data.curves)
    shapes = decay_type or list(forecasters[0].shapes) or ["1-sqrt"]
    refuse_to_choose(forecasters, shapes)
    asked = data.lengths(data.forks(fork or (), trunk), decay_steps or (), decay_fraction or ())
    branches = list(data.branches(asked, shapes, min_lr_ratio))
    per_step = {"tokens_per_step": data.tokens_per_step}
    found = [each.of(branch, level=level, **per_step) for branch in branches for each in forecasters]
    if plot:
        from hf_wsd.forecast_plots import forecast_figure

        forecast_figure(forecasters[0], branches, found, **per_step).savefig(plot)
        print(f"written: {plot}", file=sys.stderr)
    if as_json:
        laws = [each.to_dict() for each in forecasters]
        print(json.dumps({"forecasts": [asdict(f) for f in found], "laws": laws, "left_out": data.left_out}, indent=1))
    else:
        print("\n".join([*table(found), "", *notes(forecasters, found), *data.left_out]))


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a forecast starts from.

    Args:
        curves: what was measured.
        schedule: of the trunk or line.
        steps_done: by the trunk; of tables, those of their stable phases.
        tokens_per_step, samples_per_step: of one update, where known.
        settings: those the trunk was started with.
        left_out: sentences on what is not used.
    """

    curves: tuple[Curve, ...]
    schedule: Schedule
    steps_done: int
    tokens_per_step: int | None = None
    samples_per_step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def trunk_steps(self) -> int:
        """Steps of the trunk: up to where the decay starts in which it stands, if it does."""
        begun = [step for step, kind in self.schedule.checkpoint_steps().items() if step <= self.steps_done]
        in_decay = self.schedule.phase(max(0, self.steps_done - 1)) is Phase.DECAY
        before = [step for step in begun if self.schedule.checkpoint_steps()[step] == "pre-decay"]
        return max(before) if in_decay and before else self.steps_done

    def steps(self, length: str) -> int:
        """A length in steps, written as steps, tokens or samples.

        Raises:
            WSDError: none, or one in tokens or samples where those of a step are not known.
        """
        kind = Length(length).kind
        if {"tokens": self.tokens_per_step, "samples": self.samples_per_step}.get(kind, 1) is None:
            raise SettingsError(f"{length} is {kind}, and those of a step are not known here: give steps")
        return int(to_steps(length, tokens_per_step=self.tokens_per_step, samples_per_step=self.samples_per_step))

    def forks(self, forks: Sequence[str], trunk: str | None) -> list[int]:
        """The fork points asked for; where the trunk stands if none are.

        Raises:
            WSDError: a length that is none.
        """
        if times := re.fullmatch(r"(\d+\.?\d*)x", trunk or ""):
            return [round(float(times[1]) * self.trunk_steps)]
        return [self.steps(fork) for fork in forks or ([trunk] if trunk else [])] or [self.trunk_steps]

    def lengths(
        self, forks: Iterable[int], decay_steps: Sequence[str], decay_fraction: Sequence[float]
    ) -> Iterator[tuple[int, int]]:
        """Each fork point with each length of decay asked for, in steps.

        Raises:
            WSDError: a length that is none, a fraction of no step.
        """
        fractions = decay_fraction or (() if decay_steps else FRACTIONS)
        for fork in forks:
            yield from ((fork, self.steps(length)) for length in decay_steps)
            yield from ((fork, total_for_fork(fork, fraction) - fork) for fraction in fractions)

    def branches(
        self, lengths: Iterable[tuple[int, int]], shapes: Sequence[str], min_lr_ratio: float | None
    ) -> Iterator[Schedule]:
        """The schedules of decays, of each shape.

        Raises:
            WSDError: a fork point in the warm-up or a decay, a shape that is unknown or cannot reach its end.
        """
        for fork, steps in lengths:
            for shape in shapes:
                found = decay_shape(self.schedule, self.settings, decay_type=shape, min_lr_ratio=min_lr_ratio)
                yield longer(self.schedule, fork).fork(fork, decay_steps=steps, **found)


def longer(schedule: Schedule, fork: int) -> Schedule:
    """The schedule with a stable phase that reaches a fork point past its end: what a trunk or a line would go on as.

    A run that ends in its only decay goes on as if it had not decayed; a line of cycles from its last decay.

    >>> from hf_wsd.builders import wsd
    >>> longer(wsd(100, num_decay_steps=20), 150).fork(150, decay_steps=10).checkpoint_steps()
    {150: 'pre-decay', 160: 'post-decay'}
    """
    if schedule.total_steps is None or fork <= schedule.total_steps:
        return schedule
    segments = list(schedule.segments)
    if list(schedule.checkpoint_steps().values()).count("post-decay") == 1:
        while segments[-1].phase is Phase.DECAY:
            segments.pop()
    if segments[-1].phase is Phase.STABLE:
        segments[-1] = replace(segments[-1], steps=None)
    else:
        segments.append(Segment(phase=Phase.STABLE, steps=None))
    return Schedule(tuple(segments))


def _of_run(run: Run, series: str) -> Data:
    from hf_wsd.loss_curves import curves_of

    curves, left_out = curves_of(run, series=series)
    if not curves:
        logged = sorted({key for row in run.history for key in row if key.endswith("loss")})
        raise FitError(
            f"{run.path} has no {series} logged (there is: {', '.join(logged) or 'no loss'}): train with "
            "--eval_strategy steps, or name another with --series"
        )
    record = run.identity
    return Data(
        curves=curves,
        schedule=record.schedule,
        steps_done=run.steps_done,
        tokens_per_step=record.tokens_per_step,
        samples_per_step=samples_per_step(record),
        settings=record.settings,
        left_out=left_out,
    )


def _of_files(files: Sequence[Path], warmup: int, only: Sequence[str]) -> Data:
    from hf_wsd.loss_curves import read_curves

    curves = read_curves(files, warmup=warmup, only=only)
    stable = max(int(curve.steps[~curve.in_decay()].max(initial=0)) for curve in curves)
    return Data(curves=curves, schedule=wsd(num_warmup_steps=warmup, num_decay_steps=0), steps_done=stable)


def read_laws(law: str, curves: tuple[Curve, ...]) -> list[Forecaster]:
    """The forecasters of "multi-power", "annealing" or "both".

    Raises:
        FitError: another law, or curves from which no forecast can be made.
    """
    from hf_wsd.forecast import Forecaster
    from hf_wsd.local_fit import LAWS

    if law not in (*LAWS, "both"):
        raise FitError(unknown("law", law, (*LAWS, "both")))
    return [Forecaster(name=name, curves=curves) for name in (LAWS if law == "both" else (law,))]


def refuse_to_choose(forecasters: Sequence[Forecaster], shapes: Sequence[str]) -> None:
    """Refuse to compare shapes with the annealing law, or to use it for a shape that is not in the data.

    Raises:
        FitError: it was asked to.
    """
    for each in forecasters:
        if each.name == "annealing" and (len(shapes) > 1 or (each.shapes and set(shapes) - set(each.shapes))):
            raise FitError(
                f"the annealing law cannot say anything about {', '.join(shapes)}: it holds for the shapes it was "
                f"fitted on ({', '.join(each.shapes) or 'unknown here'}), and the decay it finds best is an instant "
                "drop (arXiv 2503.12811). Compare shapes with --law multi-power, or name one of these with --decay-type"
            )


def table(found: Sequence[Forecast]) -> Iterator[str]:
    """Lines of a table: its heads, then a forecast each."""
    rows = [(*HEADS[:-1], f"{found[0].level:.0%} interval"), *(_cells(each) for each in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(each: Forecast) -> tuple[str, ...]:
    tokens = "-" if each.tokens is None else show_tokens(each.tokens)
    losses = (f"{each.loss:.3f}", f"{each.low:.3f}-{each.high:.3f}")
    return (str(each.fork), str(each.end), tokens, each.shape + "*" * each.new_shape, each.law, *losses)


def notes(forecasters: Sequence[Forecaster], found: Sequence[Forecast]) -> Iterator[str]:
    """Sentences below the table: how far the law was off on decays that are known, and what it cannot know."""
    for each in forecasters:
        yield from _trust(each, each.checks)
    last = forecasters[0].last
    if any(f.new_shape for f in found):
        yield f"* no decay of this shape is in the data ({', '.join(forecasters[0].shapes)})."
    if ahead := max([f.fork for f in found if f.fork > last], default=0):
        times = f"{ahead / last:.2g} times as far"
        yield f"The losses end at step {last}, and a fork at {ahead} is {times}: its interval is wider."
    if any(each.name == "annealing" and not each.shapes for each in forecasters):
        yield "The annealing law must not choose a shape: it holds for that of the data, which a table does not name."
    if len({f.shape for f in found}) > 1:
        yield "A difference between shapes that is smaller than the intervals says nothing: train both from one fork."


def _trust(each: Forecaster, checks: Sequence[Check]) -> Iterator[str]:
    if each.error is None:
        yield (
            f"{each.name} law: with one decay it cannot be checked here; besides noise, the interval has the published "
            f"mean error on unseen schedules, {each.law_error:g} nats (arXiv 2503.12811). A second decay tells."
        )
        return
    yield f"{each.name} law, each decay hidden in turn (root mean square error {each.error:.3f} nats):"
    for check in checks:
        losses = f"forecast {check.forecast:.3f}, measured {check.measured:.3f} ({check.error:+.3f})"
        yield f"  {check.fork}-{check.end}: {losses}, noise alone gives {check.deviation:.3f}"
    if each.excess:
        yield f"  More than noise: the law itself is off by {each.excess:.3f} here; the intervals count that in."
