"""`hf-wsd fit`: what is printed, what is written, what is refused."""

import json

import pytest

from hf_wsd import cli
from hf_wsd.scaling import ScalingLaw

LAW = ScalingLaw(irreducible=1.8, data_scale=2000, data_exponent=0.36, model_scale=400, model_exponent=0.34)
SIZES = (10**7, 3 * 10**7, 10**8)


@pytest.fixture
def fit(monkeypatch, capsys):
    """Runs the verb with some arguments; returns what it printed."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["hf-wsd", "fit", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise
        return capsys.readouterr().out

    return run


@pytest.fixture
def table(tmp_path):
    """Fifteen runs of three sizes, five budgets each, and a worse one with a cosine schedule."""
    rows = [f"{n},{r * n},{LAW(r * n, n)},wsd" for n in SIZES for r in (5, 10, 20, 40, 80)]
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(["size,tokens,final,schedule", *rows, "10000000,10000000,9.9,cosine"]))
    return file


READ = ("--columns", "loss=final", "parameters=size", "--where", "schedule=wsd", "--noise", 0.001)


@pytest.mark.slow
def test_json_has_predictions_with_intervals_and_the_best_size(fit, table):
    told = json.loads(fit(table, *READ, "--predict", "2B", "4B", "--parameters", "200M", "--flops", "1e19", "--json"))
    assert told["law"] == pytest.approx(LAW.to_dict(), rel=1e-3)
    assert [(p["tokens"], p["parameters"]) for p in told["predictions"]] == [
        (2 * 10**9, 2 * 10**8),
        (4 * 10**9, 2 * 10**8),
    ]
    assert all(p["low"] < LAW(p["tokens"], p["parameters"]) < p["high"] for p in told["predictions"])
    (best,) = told["optima"]
    assert best["parameters_range"][0] < best["parameters"] < best["parameters_range"][1]


@pytest.mark.slow
def test_text_names_law_noise_check_and_predictions(fit, table):
    text = fit(table, *READ, "--flops", "1e19", "1e20")
    assert "L(N, D) = 1.800 + 400/N^0.340 + 2000/D^0.360" in text
    assert all(part in text for part in ("0.001 nats, given", "Check: from the others", "Best use of 1e+20 FLOPs"))


@pytest.mark.slow
def test_picture_and_file_are_written(fit, table, tmp_path):
    fit(table, *READ, "--plot", tmp_path / "law.png", "--output", tmp_path / "law.json")
    assert (tmp_path / "law.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "law.json").read_text())["size"] == "parameters"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--predict", "2"), "--predict is a number with its unit, such as 2B or 500M, not '2'"),
        (("--flops", "many"), "--flops is a number such as 1e20, not 'many'"),
        (("--where", "wsd"), "--where takes NAME=VALUE, not 'wsd'"),
        (("--plot", "law.gif"), "the file is a .png or .svg or .pdf, not law.gif"),
        (("--size", "weights"), "a size is parameters or parameters_without_embeddings, not 'weights'"),
        (("--noise", "-1"), "noise is the standard deviation"),
        (("--where", "schedule=wsd", "--level", "90"), "a level between 0 and 1"),
        (("--where", "schedule=none"), "no row has schedule=none: schedule is cosine, wsd"),
        (("--columns", "loss=tokens"), "--columns names 2 columns for loss: final, tokens"),
        (("--where", "scedule=wsd"), "has no column 'scedule' .*--where has to name one of these"),
        ((), "different schedule .cosine, wsd. .* pick one with --where schedule=wsd"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_repair(fit, table, words, message):
    with pytest.raises(SystemExit, match=message):
        fit(table, "--columns", "loss=final", "parameters=size", *words)
