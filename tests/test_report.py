"""The report of a family that is small enough to compute by hand."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from hf_wsd.builders import wsd, wsd_s
from hf_wsd.family import read_run
from hf_wsd.history import append_history
from hf_wsd.lineage import BRANCHES, Lineage, Parent
from hf_wsd.report import COLUMNS, make_report
from hf_wsd.reporting import terminal_table, write_report
from hf_wsd.tree import render_tree

TRUNK = wsd(num_warmup_steps=5, num_decay_steps=0)
TOKENS_PER_STEP, PARAMETERS = 64, 1000


def save(run, step, *, schedule=TRUNK, kind="fork", **changes):
    base = Lineage(step=step, kind=kind, schedule=schedule, tokens_per_step=TOKENS_PER_STEP, parameters=PARAMETERS)
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    replace(base, **{"tokens": step * TOKENS_PER_STEP} | changes).write(folder)


def evaluate(run, **losses_by_step):
    for step, loss in losses_by_step.items():
        append_history(run, {"step": int(step.strip("_")), "eval_loss": loss, "eval_runtime": 1.0})


def plan_branch(run, fork, end, *, shape="1-sqrt", name=None, **changes):
    folder = run / BRANCHES / (name or f"{fork}-{shape}-{end - fork}")
    folder.mkdir(parents=True)
    record = Lineage(
        step=fork,
        kind="planned",
        intent="branch",
        schedule=TRUNK.fork(fork, decay_steps=end - fork, shape=shape),
        parent=Parent(checkpoint=f"../../checkpoint-{fork}", step=fork),
        requested=f"{end}",
        tokens_per_step=TOKENS_PER_STEP,
    )
    record = replace(record, **changes)
    record.write(folder)
    return folder, record


def finish_branch(run, fork, end, metrics, **changes):
    folder, record = plan_branch(run, fork, end, **changes)
    told = {
        name: getattr(record, name) for name in ("schedule", "tokens_per_step", "decay_data", "optimizer", "sameness")
    }
    save(folder, end, kind="post-decay", **told)
    append_history(folder, {"step": end, **metrics})


@pytest.fixture
def trunk(tmp_path):
    """80 steps, evaluated at 30, 40 and 60; fork points at 30 and 60."""
    run = tmp_path / "small"
    save(run, 30)
    save(run, 60)
    save(run, 80, kind="end")
    evaluate(run, _30=3.0, _40=2.5, _60=2.25)
    return run


@pytest.fixture
def family(trunk):
    """The models of 40 steps (trunk evaluated there) and of 100 steps (trunk never got there)."""
    finish_branch(trunk, 60, 100, {"eval_loss": 1.75, "eval_bits_per_byte": 0.5, "eval_perplexity": 5.75})
    finish_branch(trunk, 30, 40, {"eval_loss": 2.0})
    return trunk


def cells_of(markdown):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]


def text_of(renderable):
    console = Console(width=200, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_rows_are_read_from_records_and_histories(family):
    short, long = make_report(read_run(family)).rows
    assert (short.run, short.requested, short.fork, short.end, short.tokens) == (
        "_branches/30-1-sqrt-10",
        "40",
        30,
        40,
        2560,
    )
    assert (short.trunk_loss_at_fork, short.trunk_loss_at_end, short.loss) == (3.0, 2.5, 2.0)
    assert (short.bits_per_byte, short.perplexity, short.finished) == (None, None, True)
    assert (long.fork, long.end, long.trunk_loss_at_fork, long.trunk_loss_at_end) == (60, 100, 2.25, None)
    assert (long.loss, long.bits_per_byte, long.perplexity) == (1.75, 0.5, 5.75)


def test_the_family_costs_the_trunk_up_to_its_last_fork_and_each_decay(family):
    report = make_report(read_run(family))
    assert (report.steps_done, report.trunk_steps) == (80, 60)
    assert (report.family_steps, report.separate_steps) == (60 + 10 + 40, 40 + 100)
    assert report.saving == 1 - 110 / 140
    assert (report.tokens(110), report.flops(110)) == (110 * 64, 6 * 1000 * 110 * 64)
    assert "Not counted: what the trunk did after step 60, up to step 80." in report.to_markdown()


def test_models_that_end_together_are_one_separate_run(family):
    finish_branch(family, 60, 100, {"eval_loss": 1.5}, shape="linear")
    report = make_report(read_run(family))
    assert (len(report.rows), report.family_steps, report.separate_steps) == (3, 150, 140)


def test_markdown_has_every_row(family):
    header, _, *rows = cells_of(make_report(read_run(family)).to_markdown())
    assert header == list(COLUMNS)
    assert rows == [
        ["2.56K", "30", "40", "3.000", "2.500", "2.000", "-", "30-1-sqrt-10"],
        ["6.4K", "60", "100", "2.250", "-", "1.750", "0.500", "60-1-sqrt-40"],
    ]


def test_markdown_states_the_cost_and_its_formula(family):
    text = make_report(read_run(family)).to_markdown()
    assert "Family: 110 steps = 7.04K tokens = 4.22e+07 FLOPs." in text
    assert "Separate runs of the same budgets: 140 steps = 8.96K tokens = 5.38e+07 FLOPs. Saving: 21.4%." in text
    assert "FLOPs are 6ND: 6 x 1,000 parameters x tokens." in text


def test_the_terminal_table_says_the_same_as_the_markdown(family):
    report = make_report(read_run(family))
    words = text_of(terminal_table(report)).split()  # lines are broken anywhere
    assert set(words) >= {cell for row in report.rows for cell in row.cells()}
    assert set(words) >= set(" ".join([report.claim, *report.notes()]).split())


def test_the_claim_compares_at_equal_tokens_where_it_can(family):
    assert make_report(read_run(family)).claim == "Decays end 0.500 below the trunk's loss at equal tokens"


def test_the_claim_counts_the_decays_that_do_not_help(family):
    finish_branch(family, 30, 60, {"eval_loss": 2.5})
    claim = make_report(read_run(family)).claim
    assert claim == "1 of 2 decays end below the trunk's loss at equal tokens"


def test_without_equal_tokens_the_claim_is_the_drop_since_the_fork(trunk):
    finish_branch(trunk, 60, 100, {"eval_loss": 1.75})
    assert make_report(read_run(trunk)).claim == "Decays lower the loss by 0.500"


CODE = {"/data/code.jsonl": {"part": 0.7, "data": "35-1f"}, "trunk": {"part": 0.3, "data": "99-2e"}}


def test_a_decay_on_other_data_stands_beside_its_control_with_what_it_gave(family):
    finish_branch(family, 30, 40, {"eval_loss": 1.875}, name="code", decay_data=CODE, optimizer={"beta2": 0.99})
    finish_branch(family, 30, 40, {"eval_loss": 2.125}, name="other shape", shape="linear")
    report = make_report(read_run(family))
    changed = "code.jsonl 70 %, trunk 30 %, beta2=0.99"
    header, _, *rows = cells_of(report.to_markdown())
    assert header == [*COLUMNS, "changed in the decay"]
    assert [row[-2:] for row in rows[:3]] == [["30-1-sqrt-10", "-"], ["code", changed], ["other shape", "-"]]
    assert f"- {changed}: 0.125 below its control, 30-1-sqrt-10 (2.000)." in report.to_markdown()
    assert changed in text_of(render_tree(read_run(family)))
    assert (report.family_steps, report.separate_steps) == (60 + 3 * 10 + 40, 2 * 40 + 100)


def test_an_unfinished_branch_is_shown_but_counted_nowhere(family):
    before = make_report(read_run(family))
    folder, _ = plan_branch(family, 60, 80)
    evaluate(folder, _70=2.0)
    report = make_report(read_run(family))
    row = next(row for row in report.rows if row.end == 80)
    assert (row.finished, row.loss, row.cells()[5]) == (False, None, "unfinished")
    assert (report.family_steps, report.separate_steps, report.saving, report.claim) == (
        before.family_steps,
        before.separate_steps,
        before.saving,
        before.claim,
    )
    assert "Not counted: unfinished decays (1 of 3)." in report.to_markdown()


def test_a_loss_logged_before_the_last_save_is_no_result_yet(trunk):
    folder, _ = plan_branch(trunk, 60, 100)
    evaluate(folder, _100=1.75)
    (row,) = make_report(read_run(trunk)).rows
    assert (row.finished, row.loss) == (False, None)


def test_a_trunk_alone_has_no_saving(trunk):
    report = make_report(read_run(trunk))
    assert (report.rows, report.saving, report.family_steps) == ((), None, 0)
    assert "`hf-wsd decay`" in report.to_markdown()


def test_without_evaluation_the_report_says_how_to_get_one(tmp_path):
    save(tmp_path, 30)
    finish_branch(tmp_path, 30, 40, {"loss": 2.0})
    report = make_report(read_run(tmp_path))
    assert report.rows[0].cells() == ["2.56K", "30", "40", "-", "-", "-", "-", "30-1-sqrt-10"]
    assert (report.claim, report.saving) == ("1 of 1 decayed models are finished", 0.0)
    assert "`--eval_strategy steps`" in report.to_markdown()


def test_unknown_tokens_are_left_out(tmp_path):
    save(tmp_path, 30, tokens_per_step=None, tokens=None)
    folder, record = plan_branch(tmp_path, 30, 40, tokens_per_step=None)
    save(folder, 40, schedule=record.schedule, kind="post-decay", tokens_per_step=None, tokens=None)
    report = make_report(read_run(tmp_path))
    assert (report.rows[0].tokens, report.rows[0].cells()[0], report.flops(1)) == (None, "-", None)
    assert "Family: 40 steps." in report.to_markdown()
    assert "FLOPs" not in report.to_markdown()


def test_unequal_steps_have_no_common_token_count(trunk):
    finish_branch(trunk, 60, 100, {"eval_loss": 1.75}, tokens_per_step=128)
    assert make_report(read_run(trunk)).tokens_per_step is None


@pytest.fixture
def line(tmp_path):
    """A WSD-S line with models at 40 and 100 of 200 steps; it stands at step 150."""
    run = tmp_path / "line"
    schedule = wsd_s(cycle_ends=[40, 100, 200], num_decay_steps=10)
    for step, kind in {30: "pre-decay", 40: "post-decay", 90: "pre-decay", 100: "post-decay", 150: "periodic"}.items():
        save(run, step, schedule=schedule, kind=kind)
    evaluate(run, _30=3.0, _40=2.5, _90=2.25, _100=1.75, _150=2.0)
    return run


def test_a_wsd_s_line_has_a_row_per_cycle(line):
    report = make_report(read_run(line))
    assert [(row.run, row.fork, row.end, row.trunk_loss_at_fork, row.loss, row.finished) for row in report.rows] == [
        (".", 30, 40, 3.0, 2.5, True),
        (".", 90, 100, 2.25, 1.75, True),
        (".", 190, 200, None, None, False),
    ]
    assert [row.trunk_loss_at_end for row in report.rows] == [None, None, None]
    assert report.claim == "Decays lower the loss by 0.500"


def test_a_wsd_s_line_costs_itself(line):
    report = make_report(read_run(line))
    assert (report.steps_done, report.family_steps, report.separate_steps) == (150, 100, 140)


def test_json_on_disk_is_the_report(family):
    files = write_report(family)
    data = json.loads(files["json"].read_text())
    report = make_report(read_run(family))
    assert data.items() >= json.loads(json.dumps(report.to_dict())).items()
    assert (data["rows"][1]["loss"], data["saving"], data["family_tokens"]) == (1.75, 1 - 110 / 140, 7040)


def test_a_diverged_model_leaves_valid_json(trunk):
    finish_branch(trunk, 30, 40, {"eval_loss": float("nan"), "eval_perplexity": float("inf")})
    report = make_report(read_run(trunk))
    assert report.rows[0].cells()[5] == "nan"
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][0]["loss"] is None
    assert report.claim == "0 of 1 decays end below the trunk's loss at equal tokens"


def test_a_decay_that_has_diverged_spoils_the_claim_of_the_others(family):
    finish_branch(family, 30, 40, {"eval_loss": float("nan")}, name="diverged")
    assert make_report(read_run(family)).claim == "1 of 2 decays end below the trunk's loss at equal tokens"


def test_what_other_data_gave_is_not_in_the_claim(family):
    finish_branch(family, 30, 40, {"eval_loss": 0.5}, name="code", decay_data=CODE)
    assert make_report(read_run(family)).claim == "Decays end 0.500 below the trunk's loss at equal tokens"


def test_a_row_has_the_shape_and_the_folder_of_its_model(family):
    row = make_report(read_run(family)).rows[0]
    assert (row.shape, row.model) == ("1-sqrt", "_branches/30-1-sqrt-10/checkpoint-40")


def test_the_tree_hangs_branches_below_their_fork_points(family):
    plan_branch(family, 30, 50)
    evaluate(plan_branch(family, 60, 80)[0], _70=2.0)
    (family / "checkpoint-20").mkdir()
    lines = [line.strip("│├└─ ") for line in text_of(render_tree(read_run(family))).splitlines()]
    assert [re.sub(r", [\d.]+ k?B$", "", line) for line in lines[:-2]] == [
        "small: step 80, 5.12K tokens, stable",
        "warmup linear 0 -> 1, 5 steps; stable at 1, open-ended",
        "step 30, 1.92K tokens, loss 3.000: fork point, no kept copy",
        "30-1-sqrt-10: finished, step 40, 2.56K tokens, loss 2.000",
        "30-1-sqrt-20: planned, ends at step 50",
        "step 60, 3.84K tokens, loss 2.250: fork point, no kept copy",
        "60-1-sqrt-20: at step 70, ends at step 80",
        "60-1-sqrt-40: finished, step 100, 6.4K tokens, loss 1.750, bits per byte 0.500",
        "step 80, 5.12K tokens: end of the run, no kept copy",
    ]


def test_a_report_without_a_picture_needs_no_matplotlib():
    check = "import sys, hf_wsd.report; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
