"""`hf-wsd fit`: the scaling law of decayed models, its check, predictions, and the best use of a compute budget."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_wsd.errors import SettingsError
from hf_wsd.history import write_atomically
from hf_wsd.lengths import Length, show_tokens

if TYPE_CHECKING:
    from hf_wsd.law import Prediction
    from hf_wsd.optimum import Optimum
    from hf_wsd.scaling import Fit

Words = list[str] | None
_RUNS = "Folders of trunks; or tables of anybody's runs, .csv, .tsv, .json, .jsonl."
_COLUMNS = "Of a table: tokens=D loss=val_loss parameters=N; also of the fields that runs may differ in."


def fit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help=_RUNS, show_default=False)],
    predict: Annotated[Words, typer.Option(help="Budgets to predict: 2B. By default 2x and 4x the longest.")] = None,
    parameters: Annotated[Words, typer.Option(help="Sizes to predict for: 124M. By default those given.")] = None,
    flops: Annotated[Words, typer.Option(help="Compute budgets to spend best: 1e20.")] = None,
    size: Annotated[str, typer.Option(help="N: parameters or parameters_without_embeddings.")] = "parameters",
    noise: Annotated[float | None, typer.Option(help="Standard deviation of one run's loss, in nats.")] = None,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.9,
    columns: Annotated[Words, typer.Option(metavar="FIELD=COLUMN", help=_COLUMNS)] = None,
    where: Annotated[
        Words,
        typer.Option(metavar="COLUMN=VALUE", help="Only these rows: scheduler=wsd. A column twice: either value."),
    ] = None,
    allow: Annotated[Words, typer.Option(metavar="FIELD", help="Mix models that differ in it: peak_lr.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the JSON to a file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Fit a scaling law to decayed models: L(D) of one size, L(N, D) of several; predict with intervals."""
    from hf_wsd.optimum import find_optimum
    from hf_wsd.points import read_points
    from hf_wsd.scaling import fit_law

    for file, kinds in ((plot, (".png", ".svg", ".pdf")), (output, (".json",))):
        _check_file(file, kinds)
    budgets = [_number("--predict", text, "2B or 500M") for text in predict or ()]
    asked = [_number("--parameters", text, "124M") for text in parameters or ()]
    compute = [_flops(text) for text in flops or ()]
    named = {field: _only(field, names) for field, names in _pairs("--columns", columns).items()}
    points = read_points(runs, columns=named, where=_pairs("--where", where))
    law = fit_law(
        points, noise=noise, size=size.replace("-", "_"), allow=[name.replace("-", "_") for name in allow or ()]
    )
    longest = max(point.tokens for point in law.points)
    wanted = budgets or [2 * longest, 4 * longest]
    predictions = [law.predict(tokens, n, level) for n in _sizes(law, asked) for tokens in wanted]
    optima = [find_optimum(law, budget, level) for budget in compute]
    told = law.to_dict() | {"predictions": [vars(p) for p in predictions], "optima": [o.to_dict() for o in optima]}
    if output:
        write_atomically(output, json.dumps(told, indent=1) + "\n")
        print(f"written: {output}", file=sys.stderr)
    if plot:
        drawn = predictions if asked or budgets or not law.size else []  # of many sizes only what was asked for
        _draw(law, plot, level=level, predictions=drawn, flops=compute)
    print(json.dumps(told, indent=1) if as_json else _text(law, predictions, optima, level))


def _check_file(file: Path | None, kinds: tuple[str, ...]) -> None:
    if file is not None and file.suffix not in kinds:
        raise SettingsError(f"the file is a {' or '.join(kinds)}, not {file.name}")
    if file is not None and not file.parent.is_dir():
        raise SettingsError(f"there is no folder {file.parent} for {file.name}")


def _number(flag: str, text: str, such_as: str) -> int:
    """A number of tokens or parameters with its unit: 2B."""
    try:
        number = Length(text).tokens
    except ValueError:
        number = None
    if number is None:
        raise SettingsError(f"{flag} is a number with its unit, such as {such_as}, not {text!r}")
    return number


def _flops(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"--flops is a number such as 1e20, not {text!r}") from None


def _pairs(flag: str, words: Words) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words or ():
        if "=" not in word:
            raise SettingsError(f"{flag} takes NAME=VALUE, not {word!r}")
        name, value = word.split("=", 1)
        found.setdefault(name, []).append(value)
    return found


def _only(field: str, names: list[str]) -> str:
    if len(names) > 1:
        raise SettingsError(f"--columns names {len(names)} columns for {field}: {', '.join(names)}")
    return names[0]


def _sizes(fit: Fit, asked: list[int]) -> list[int | None]:
    """The sizes to predict for: those asked for, else those of the models; of a law of one size None."""
    if fit.size:
        return [*(asked or sorted({point.size(fit.size) or 0 for point in fit.points}))]
    if asked:
        raise SettingsError(
            f"--parameters asks for models of {', '.join(map(show_tokens, asked))}, and a law of one size predicts for "
            "that size alone: leave it out, or give families of other sizes"
        )
    return [None]


def _draw(fit: Fit, file: Path, **told: Any) -> None:
    from hf_wsd.scaling_plots import law_figure

    law_figure(fit, **told).savefig(file)
    print(f"written: {file}", file=sys.stderr)


def _text(fit: Fit, predictions: list[Prediction], optima: list[Optimum], level: float) -> str:
    where = f", and where one more run lies in {level:.0%} of cases" if predictions[0].low is not None else ""
    lines = [*fit.statements(level), "", f"Predicted loss{where}:"]
    for told in predictions:
        who = f"{show_tokens(told.tokens)} tokens" + (
            f", {show_tokens(told.parameters)} parameters" if told.parameters else ""
        )
        lines.append(f"  {who:<34} {told}")
    for best in optima:
        lines += ["", *_optimum_lines(best, level)]
    return "\n".join(lines)


def _optimum_lines(best: Optimum, level: float) -> list[str]:
    n, d = (
        f"{show_tokens(value)}" + (f" ({level:.0%}: {show_tokens(ends[0])} to {show_tokens(ends[1])})" if ends else "")
        for value, ends in ((best.parameters, best.parameters_range), (best.tokens, best.tokens_range))
    )
    far = f", {best.times_largest:.3g} times the largest model's compute" if best.times_largest > 1 else ""
    lines = [f"Best use of {best.flops:.3g} FLOPs{far}: N = {n}, D = {d}, loss {best.loss:.4f}."]
    if not best.parameters_range:
        lines.append("  No ranges: the noise is not known, or some of the simulated laws have no best size.")
    lines.append(f"  FLOPs are 6ND, N is {best.size.replace('_', ' ')}. The same FLOPs on other sizes:")
    for parameters, tokens, loss in best.others:
        lines.append(
            f"  N = {show_tokens(parameters):<8} D = {show_tokens(tokens):<8} {loss:.4f} ({loss - best.loss:+.4f})"
        )
    return lines
