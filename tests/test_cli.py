"""`hf-wsd` as typed: what goes to stdout, what is refused, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trainer_runs import FAMILY, record_command, train_here

from hf_wsd import cli
from hf_wsd.family import read_run
from hf_wsd.lineage import Command


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    run = train_here(tmp_path_factory.mktemp("family") / "run", "--num_train_epochs", 9, launch=FAMILY)
    record_command(run, Command(argv=("train.py",), cwd="."))
    return run


@pytest.fixture
def hf_wsd(monkeypatch, capsys):
    """Run `hf-wsd WORDS` in this process: its exit code, and what it printed."""

    def call(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["hf-wsd", *map(str, words)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return call


def test_dry_run_prints_commands_to_stdout_and_places_to_stderr(hf_wsd, trunk):
    code, out, err = hf_wsd("decay", trunk, "--budgets", "1.28K", "40", "--dry-run")
    assert code == 0
    assert [line.split("--max_steps ")[1].split()[0] for line in out.splitlines()] == ["20", "40"]
    assert "decay from step 15 (960 tokens), the model ends at step 20 (1.28K tokens)" in err
    assert not read_run(trunk).branches


def test_json_is_all_that_stdout_has(hf_wsd, trunk):
    _, out, _ = hf_wsd("decay", trunk, "--at", 15, 30, "--decay_steps", 3, "--dry-run", "--json")
    assert [Path(row["branch"]).name for row in json.loads(out)] == ["15-1-sqrt-3", "30-1-sqrt-3"]


def test_tree_shows_the_fork_points(hf_wsd, trunk):
    code, out, _ = hf_wsd("tree", trunk)
    assert code == 0
    assert "step 15, 960 tokens" in out


def test_report_writes_page_numbers_and_picture(hf_wsd, trunk):
    code, out, _ = hf_wsd("report", trunk)
    assert code == 0
    assert all((trunk / f"report.{suffix}").stat().st_size > 0 for suffix in ("html", "md", "json", "png", "svg"))
    assert "hf-wsd decay" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decay", "{trunk}", "--budgets", "1X"), "'1X' is no length"),
        (("decay", "{trunk}", "--at", "3"), "warmup phase"),
        (("decay", "{trunk}", "--decay-fraction", "2"), "strictly between 0 and 1"),
        (("decay", "{trunk}", "--decay-fraction", "0.1", "--decay-steps", "3"), "not both"),
        (("decay", "{trunk}", "--decay-steps", "0.2"), "decay_fraction=0.2"),
        (("decay", "{trunk}", "--decay-type", "sqrt"), "did you mean '1-sqrt'"),
        (("decay", "{trunk}", "--decay-type", "inverse"), "min_lr_ratio > 0"),
        (("decay", "{trunk}", "--name", "one"), "2 are asked for"),
        (("decay", "/nowhere"), "is no run of hf_wsd"),
        (("report", "/nowhere"), "is no run of hf_wsd"),
        (("report", "{trunk}", "{trunk}"), "give --output FOLDER"),
        (("cooldown", "{trunk}", "--at", "3"), "did you mean `hf-wsd decay`"),
    ],
)
def test_bad_input_is_one_message_that_names_the_repair(hf_wsd, trunk, words, message):
    code, _, _ = hf_wsd(*(word.format(trunk=trunk) for word in words))
    assert str(code).startswith("hf-wsd: ")
    assert message in str(code)
