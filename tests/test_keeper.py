"""Records and history that something goes wrong with: named, and never in training's way."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_wsd.builders import wsd
from hf_wsd.history import read_history
from hf_wsd.keeper import Keeper
from hf_wsd.lineage import RECORD, Lineage

BASE = Lineage(step=0, kind="periodic", schedule=wsd(100), last_step=100)


@pytest.fixture
def keeper(tmp_path):
    return Keeper(tmp_path, BASE, {100: "end"})


def errors(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (torch.tensor(0.5), 0.5),
        (torch.ones(2), "tensor([1., 1.])"),
        (Path("cuda"), "cuda"),
        ({"a": {1}}, {"a": "{1}"}),
    ],
    ids=str,
)
def test_value_that_json_does_not_know_is_its_number_or_its_text(keeper, tmp_path, value, kept):
    keeper.log({"step": 1, "value": value, ("a", "key"): 1})
    assert read_history(tmp_path) == [{"step": 1, "value": kept}]


def test_row_that_holds_itself_is_lost_and_named(keeper, tmp_path, caplog):
    row: dict[str, object] = {"step": 1}
    row["loop"] = row
    keeper.log(row)
    keeper.log({"step": 2})
    assert read_history(tmp_path) == [{"step": 2}]
    assert "a row of the history" in errors(caplog)[0]


def test_history_that_cannot_be_opened_is_named(keeper, tmp_path, caplog):
    (tmp_path / "wsd.jsonl").mkdir()
    keeper.log({"step": 1})
    assert "a row of the history" in errors(caplog)[0]


def test_record_that_cannot_be_written_is_written_at_the_next_save(keeper, tmp_path, caplog):
    for step in (10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-10" / RECORD).mkdir()  # in the way of the file
    keeper.save(10, tokens=640)
    (tmp_path / "checkpoint-10" / RECORD).rmdir()
    keeper.save(20, tokens=1280)
    assert len(errors(caplog)) == 1
    assert [Lineage.read(tmp_path / f"checkpoint-{step}").tokens for step in (10, 20)] == [640, 1280]


def test_record_of_a_value_that_it_cannot_hold_is_named(keeper, tmp_path, caplog):
    (tmp_path / "checkpoint-10").mkdir()
    keeper.save(10, tokens="many")
    assert "tokens cannot be 'many'" in errors(caplog)[0]


def test_setting_that_is_a_numpy_number_is_recorded_as_a_number(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    Keeper(tmp_path, replace(BASE, setup={"seed": np.int64(7)}), {}).save(10)
    assert Lineage.read(tmp_path / "checkpoint-10").setup == {"seed": 7}
