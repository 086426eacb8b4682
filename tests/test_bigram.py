"""The bigram toy: its language, its curvature, and what the paper says of it, on five seeds."""

import bigram
import numpy as np
import pytest
import torch
from bigram import FIRST, GPT2, Run, formula, make_language, measured_curvature, train_table
from bigram_figures import figure
from bigram_findings import Findings, Statement, describe, read, write
from trainer_runs import ROOT, command_line

from hf_wsd.baselines import constant
from hf_wsd.errors import DataError, SettingsError

RESULTS = ROOT / "recipes" / "results" / "bigram.json"


@pytest.fixture(scope="module")
def language():
    return make_language(3, words=3, rest=2)  # 28 tokens


def small_findings():
    losses = {"constant": (0.2, 0.5), "WSD": (0.1, 0.2), "WSD-S": (0.1, 0.2), "cosine": (0.1, 0.2)}
    runs = [
        Run(model="table", schedule=name, lr=lr, seed=seed, losses=dict.fromkeys((8, 10), (c, u * (1 + lr * seed))))
        for name, (c, u) in losses.items()
        for lr in (1.0, 2.0)
        for seed in (0, 1)
    ]
    return Findings(model="table", lr=1.0, limit=8.0, runs=tuple(runs))


# --- the language ---


def test_frequencies_are_those_that_the_chain_keeps(language):
    torch.testing.assert_close(language.frequency @ language.successors, language.frequency)


def test_all_but_the_first_letters_have_one_certain_successor(language):
    choices = (language.successors > 0).sum(dim=1)
    assert (choices[:FIRST].tolist(), set(choices[FIRST:].tolist())) == ([3] * FIRST, {1})


def test_text_has_only_bigrams_of_the_language(language):
    text = language.text(50, torch.Generator().manual_seed(0))
    assert bool((language.successors[text[:, :-1], text[:, 1:]] > 0).all())


# --- curvature ---


def test_curvature_of_each_row_is_the_formula(language):
    rows = range(len(language.frequency))
    differences = [(measured_curvature(language, row) - formula(language, row)).abs().max() for row in rows]
    assert max(differences) < 1e-6


def test_rows_of_the_whole_table_share_no_curvature():
    language = make_language(3, words=1, rest=1)

    def loss(table):
        of_rows = -(language.successors * torch.log_softmax(table, dim=1)).sum(dim=1)
        return (language.frequency * of_rows).sum()

    size = len(language.frequency)
    table = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(table)
    apart = ~torch.eye(size, dtype=torch.bool)
    assert hessian.transpose(1, 2)[apart].abs().max() == 0


def test_certain_rows_are_flat(language):
    assert max(formula(language, row).abs().max() for row in range(FIRST, len(language.frequency))) == 0


# --- training ---


def test_table_takes_the_steps_of_plain_sgd(language):
    steps, batch, lr = 12, 4, 3.0
    first, second = language.pairs(steps * batch, torch.Generator().manual_seed(0))
    table = torch.zeros(28, 28, requires_grad=True)
    optimizer = torch.optim.SGD([table], lr=lr)
    for i, j in zip(first.view(steps, batch), second.view(steps, batch), strict=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(table[i], j).backward()
        optimizer.step()
    above = language.frequency * bigram.divergence(language.successors, torch.log_softmax(table, dim=1))
    losses = train_table([language], [lr], constant(steps), batch=batch, points=1)[steps][0, 0]
    torch.testing.assert_close(losses.double(), torch.stack([above[FIRST:].sum(), above[:FIRST].sum()]))


# --- findings ---


def test_results_come_back_as_they_were_written(tmp_path):
    write(tmp_path / "bigram.json", [small_findings()], 1e-9)
    assert read(tmp_path / "bigram.json") == ([small_findings()], 1e-9)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "bigram.json").write_text("[]")
    with pytest.raises(DataError, match=r"bigram\.json has no results of recipes/bigram\.py"):
        read(tmp_path / "bigram.json")


def test_one_seed_is_refused(tmp_path):
    with (
        command_line("bigram.py", "--output_dir", tmp_path, "--seeds", 1),
        pytest.raises(SettingsError, match="spread"),
    ):
        bigram.main()


def test_statement_that_does_not_hold_is_said():
    lines = "\n".join(describe([small_findings()], 1e-3))
    assert lines.count("**no**") == sum(statement.holds is False for statement in small_findings().statements()) + 1


@pytest.mark.parametrize(("apart", "holds"), [(0.05, True), (-0.05, False), (0.001, None)])
def test_trend_within_two_standard_errors_is_not_told(apart, holds):
    noise = {1.0: (0.0, 0.01, -0.01), 2.0: (0.01, -0.01, 0.0), 4.0: (-0.01, 0.0, 0.01)}
    runs = [
        Run(
            model="table",
            schedule=name,
            lr=lr,
            seed=seed,
            losses={10: (1.0 - apart * lr + noise[lr][seed], hill * (9 + seed))},
        )
        for name, hill in (("constant", 0.5), ("WSD", 0.4))
        for lr in noise
        for seed in range(3)
    ]
    *_, last = Findings(model="table", lr=1.0, limit=None, runs=tuple(runs)).statements()
    assert (last.claim.split(":")[0], last.holds) == ("progress along the river grows with lr", holds)


@pytest.mark.parametrize("gain", [0.5, -0.5])
def test_decay_counts_where_it_stands_ten_standard_errors_below(gain):
    runs = [
        Run(model="gpt2", schedule=name, lr=1.0, seed=seed, losses={10: (0.0, loss * (1 + seed / 100))})
        for name, loss in (("constant", 1.0), ("WSD", 1.0 - gain))
        for seed in range(5)
    ]
    first = next(Findings(model="gpt2", lr=1.0, limit=None, runs=tuple(runs)).statements())
    assert isinstance(first, Statement)
    assert first.holds == (gain > 0)


def test_readme_has_the_measured_statements():
    lines = "\n".join(describe(*read(RESULTS))).splitlines()
    statements = [line for line in lines if line.endswith("|") and line.count("|") == 4 and "| holds |" not in line]
    readme = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8").splitlines()
    assert (len(statements) > 10, [line for line in statements if line not in readme]) == (True, [])


@pytest.mark.slow
def test_every_statement_holds_for_the_table_on_five_seeds():
    assert [statement for statement in bigram.run_table(5).statements() if not statement.holds] == []


@pytest.mark.slow
def test_decay_helps_the_uncertain_bigrams_of_gpt2_most():
    gains = bigram.run_gpt2(5, lrs=(GPT2.lr,), names=("constant", "WSD")).gains(GPT2.lr)
    more = gains[:, 1] - gains[:, 0]
    assert more.mean() > 3 * more.std(ddof=1) / np.sqrt(5)


@pytest.mark.slow
def test_picture_of_the_measured_results_is_drawn(tmp_path):
    figure(read(RESULTS)[0]).savefig(tmp_path / "bigram.png")
    assert (tmp_path / "bigram.png").stat().st_size > 50_000
