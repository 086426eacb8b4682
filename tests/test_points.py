"""Decayed models as observations: out of families, and out of tables."""

import json
from dataclasses import replace
from math import isnan

import pytest

from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import DataError
from hf_wsd.family import read_run
from hf_wsd.history import append_history
from hf_wsd.lineage import BRANCHES, Lineage, Parent
from hf_wsd.points import points_of, read_points
from hf_wsd.scaling import fit_law

TRUNK = wsd(num_warmup_steps=5, num_decay_steps=0)


def save(folder, step, schedule, *, loss, kind="end", **changes):
    record = Lineage(step=step, kind=kind, schedule=schedule, tokens_per_step=64, parameters=1000, peak_lrs=(0.1,))
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    replace(record, **{"evaluation": "8-ab", "parameters_without_embeddings": 700} | changes).write(checkpoint)
    append_history(folder, {"step": step, "eval_loss": loss})


def branch(trunk, fork, end, *, loss=None, **changes):
    schedule = TRUNK.fork(fork, decay_steps=end - fork, shape="linear", final=changes.pop("final", None))
    folder = trunk / BRANCHES / f"{fork}-{end}"
    folder.mkdir(parents=True)
    parent = Parent(checkpoint=f"../../checkpoint-{fork}", step=fork)
    record = Lineage(step=fork, kind="planned", intent="branch", schedule=schedule, parent=parent, tokens_per_step=64)
    replace(record, **changes).write(folder)
    if loss is not None:
        save(folder, end, schedule, loss=loss, **changes)


@pytest.fixture
def family(tmp_path):
    save(tmp_path, 80, TRUNK, loss=3.0, setup={"seed": 7})
    branch(tmp_path, 80, 100, loss=2.5)
    return tmp_path


def test_decayed_model_of_a_branch_is_a_point(family):
    (point,) = points_of(read_run(family))
    assert (point.tokens, point.loss, point.parameters, point.parameters_without_embeddings) == (6400, 2.5, 1000, 700)
    assert (point.decay_steps, point.decay_fraction, point.decay_type) == (20, 0.2, "linear")
    assert (point.peak_lr, point.evaluation, point.seed) == (0.1, "8-ab", 7)


@pytest.mark.slow
def test_unfinished_decay_is_a_point_without_a_loss(family):
    branch(family, 80, 120)
    assert [isnan(point.loss) for point in points_of(read_run(family))] == [False, True]


@pytest.mark.slow
def test_decay_that_changes_more_than_the_lr_is_no_point(family):
    branch(family, 80, 90, loss=2.4, optimizer={"beta2": 0.99})
    assert [point.tokens for point in points_of(read_run(family))] == [6400]


@pytest.mark.slow
def test_shape_names_an_end_above_zero(family):
    branch(family, 80, 90, loss=2.6, final=0.1)
    assert [point.decay_type for point in points_of(read_run(family))] == ["linear to 0.1", "linear"]


@pytest.mark.slow
def test_fraction_of_a_cycle_is_counted_from_the_decay_before(tmp_path):
    schedule = wsd_s(cycle_ends=[50, 150], num_warmup_steps=5, decay_fraction=0.2)
    for step, loss in ((50, 3.0), (150, 2.5)):
        save(tmp_path, step, schedule, loss=loss, kind="post-decay")
    found = [(point.tokens, point.decay_steps, point.decay_fraction) for point in points_of(read_run(tmp_path))]
    assert found == [(3200, 10, 0.2), (9600, 20, 0.2)]


@pytest.mark.slow
def test_line_whose_cycles_decay_by_one_fraction_is_fitted_unasked(tmp_path):
    ends = [35, 60, 150, 330]  # a tenth of their steps is rounded to 0.114 and 0.08 of them
    schedule = wsd_s(cycle_ends=ends, num_warmup_steps=5, decay_fraction=0.1)
    for cycle, step in enumerate(ends):
        save(tmp_path, step, schedule, loss=3 - 0.2 * cycle, kind="post-decay")
    points = points_of(read_run(tmp_path))
    assert [point.decay_steps for point in points] == [4, 2, 9, 18]
    assert ({point.schedule for point in points}, len(fit_law(points).points)) == ({"wsd_s"}, len(ends))


def test_table_and_family_give_the_same_points(family):
    (point,) = points_of(read_run(family))
    table = family / "points.json"
    table.write_text(json.dumps({"points": [vars(point)]}))
    assert read_points([table]) == read_points([family]) == (point,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("runs.csv", "D,final,kind\n1000,3.5,wsd\n2000,3.4,cos\n"),
        ("runs.json", '[{"D": 1000, "final": 3.5, "kind": "wsd"}, {"D": 2000, "final": 3.4, "kind": "cos"}]'),
        ("runs.jsonl", '{"D": 1000, "final": 3.5, "kind": "wsd"}\n{"D": 2000, "final": 3.4, "kind": "cos"}\n'),
    ],
)
def test_rows_of_any_table_are_picked_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    points = read_points([tmp_path / name], columns={"tokens": "D", "loss": "final"}, where={"kind": "wsd"})
    assert [(point.tokens, point.loss) for point in points] == [(1000, 3.5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "tokens;loss\n2000000;3.5\n",
        "tokens\tloss\n2e6\t3.5\n",
        '"tokens", "loss"\n"2M", "3.5"\n\n',
        "\ufefftokens,loss,run\n2000000,3.5\n",
    ],
    ids=["semicolons", "tabs", "quotes, spaces and units", "byte order mark and a short row"],
)
def test_table_of_another_program_is_read(tmp_path, text):
    (tmp_path / "runs.csv").write_text(text, encoding="utf-8")
    (point,) = read_points([tmp_path / "runs.csv"])
    assert (point.tokens, point.loss) == (2_000_000, 3.5)


@pytest.mark.slow
def test_rows_are_picked_by_field_too_and_by_either_of_two_values(tmp_path):
    (tmp_path / "runs.csv").write_text("tokens,loss,dataset\n1000,3.5,a\n2000,3.4,\n3000,3.3,b\n")
    points = read_points([tmp_path / "runs.csv"], where={"evaluation": ["a", ""]})
    assert [point.tokens for point in points] == [1000, 2000]


@pytest.mark.slow
def test_rows_that_are_not_there_are_named_with_those_that_are(tmp_path):
    (tmp_path / "runs.csv").write_text("tokens,loss,params\n1000,3.5,100\n2000,3.4,200\n")
    with pytest.raises(DataError, match="no row has params=300: params is 100, 200"):
        read_points([tmp_path / "runs.csv"], where={"params": "300"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("tokens,val\n1,2\n", {}, r"no column 'loss' \(it has tokens, val\).* --columns loss="),
        ("tokens,loss\n1,2\n", {"lozz": "loss"}, "names 'lozz', but a point has"),
        ("tokens,loss\n1e6,high\n", {}, "row 1: loss is a number, not 'high'"),
        ("tokens,loss\n0,3\n", {}, "row 1: tokens is a number above 0, not '0'"),
        ("tokens,loss\n1.5,3\n", {}, "tokens is a whole number, such as 1500 or 1.5B, not '1.5'"),
        ("tokens;loss\n1500;3,5\n", {}, "row 1: loss is a number, not '3,5'"),
        ("tokens,loss,loss\n1,2,3\n", {}, "two columns are called 'loss'"),
        ("tokens,loss\n1,2,3\n", {}, "row 1 has 3 cells for 2 columns"),
        ("tokens,loss\n", {}, "has no rows"),
    ],
)
def test_table_that_cannot_be_read_is_refused_with_its_columns(tmp_path, text, columns, message):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_points([tmp_path / "runs.csv"], columns=columns)


@pytest.mark.slow
def test_run_that_is_given_twice_is_refused(family, monkeypatch):
    monkeypatch.chdir(family.parent)
    with pytest.raises(DataError, match="is given twice, and every model of it would count twice"):
        read_points([family, family.name])


@pytest.mark.parametrize("name", ["tokens", "parameters", "peak_lr"])
def test_what_has_to_be_above_zero_is_named_with_its_row(tmp_path, name):
    (tmp_path / "a.csv").write_text(f"{name},{'size' if name == 'tokens' else 'tokens'},loss\n-10,7,3\n")
    with pytest.raises(DataError, match=rf"row 1: {name} is a number above 0, not '-10'"):
        read_points([tmp_path / "a.csv"])


def test_nan_of_other_programs_is_an_empty_cell(tmp_path):
    (tmp_path / "a.csv").write_text("tokens,loss,peak_lr,params\n10,3,nan,NaN\n")
    (point,) = read_points([tmp_path / "a.csv"])
    assert (point.peak_lr, point.parameters) == (None, None)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*runs\.csv"):
        read_points([tmp_path / "runs.csv"])
