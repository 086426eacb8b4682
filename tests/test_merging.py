"""The merge preview: coefficients against the schedule's own multipliers, merged tensors against their plain sum."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_recipe import TINY
from trainer_runs import ROOT, command, command_line
from transformers import AutoModelForCausalLM

from hf_wsd import cli
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import CheckpointError, ForkError
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage
from hf_wsd.merge import is_merged, merge_coefficients, plan_merge, write_merge
from hf_wsd.revisions import revisions
from hf_wsd.segment import Segment
from hf_wsd.shapes import SHAPES

TRUNK = wsd(num_warmup_steps=5, num_decay_steps=0)
STEPS = (70, 80, 85, 100)


def save(run, step, *, kind="kept", schedule=TRUNK):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    Lineage(step=step, kind=kind, schedule=schedule, tokens_per_step=64).write(folder)


def decay_of(shape, steps=40):
    needs_end = SHAPES[shape].needs_positive_ends
    params = {"half_life": 5.0} if shape == "half-life" else None
    return {"decay_steps": steps, "shape": shape, "final": 0.1 if needs_end else None, "params": params}


def tensors(step):
    """Two matrices, one of them in half precision, and a count."""
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3) * step
    return {"w": values, "half": values.bfloat16(), "count": torch.tensor([step])}


@pytest.fixture
def trunk(tmp_path):
    """A trunk with checkpoints at STEPS whose weights are known; 40 steps before the last are all stable."""
    run = tmp_path / "run"
    for step in STEPS:
        save(run, step)
        folder = run / f"checkpoint-{step}"
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        save_file(tensors(step), folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    return run


def merged(run, **decay):
    folder = write_merge(plan_merge(read_run(run), 100, **{"num_decay_steps": 40, "decay_type": "linear"} | decay))
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("shape", SHAPES)
def test_each_update_gets_the_multiplier_that_the_decay_would_have_given_it(shape):
    decay = decay_of(shape)
    schedule = TRUNK.fork(60, **decay)
    segment = Segment.decay(40, shape=shape, end=decay["final"], params=decay["params"])
    coefficients = merge_coefficients(STEPS, segment, fork=60)
    kept_of_each = [sum(coefficients[i:]) for i in range(1, len(STEPS))]  # of the updates before checkpoint i
    assert kept_of_each == pytest.approx([schedule(step) for step in STEPS[:-1]], abs=1e-12)
    assert sum(coefficients) == pytest.approx(1, abs=1e-12)


def test_a_linear_decay_is_the_plain_mean_of_evenly_spaced_checkpoints():
    assert merge_coefficients(range(64, 101, 4), Segment.decay(40, shape="linear"), fork=60) == pytest.approx(
        [0.1] * 10
    )


@pytest.mark.parametrize("steps", [[], [70, 70, 80], [50, 80, 100], [80, 90, 101]])
def test_checkpoints_outside_the_decay_are_refused(steps):
    with pytest.raises(ForkError, match=r"must rise and lie within the decay, steps 60 to 100"):
        merge_coefficients(steps, Segment.decay(40), fork=60)


def test_weights_are_summed_in_double_precision_and_counts_are_those_of_the_last(trunk):
    found = merged(trunk)
    shares = [(step - before) / 40 for before, step in pairwise([60, *STEPS])]
    for name in ("w", "half"):
        exact = sum(share * tensors(step)[name].double() for share, step in zip(shares, STEPS, strict=True))
        assert torch.equal(found[name], exact.to(tensors(1)[name].dtype))
    assert found["count"].item() == 100


def test_weights_in_several_files_are_merged_like_those_in_one(trunk):
    whole = merged(trunk)
    folder = trunk / "checkpoint-80"
    (folder / "model.safetensors").unlink()
    parts = {name: f"model-0000{i}-of-00003.safetensors" for i, name in enumerate(tensors(80), 1)}
    for name, file in parts.items():
        save_file({name: tensors(80)[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    again = merged(trunk, decay_type="linear", min_lr_ratio=0.0)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_repeated_merge_is_known_and_another_shape_is_another_folder(trunk):
    run = read_run(trunk)
    linear, other = (plan_merge(run, 100, num_decay_steps=40, decay_type=shape) for shape in ("linear", "1-sqrt"))
    write_merge(linear)
    assert (is_merged(linear), is_merged(other), linear.folder == other.folder) == (True, False, False)


def test_a_merge_that_fails_leaves_no_folder(trunk):
    broken = tensors(80) | {"w": torch.full((2, 3), torch.nan)}
    save_file(broken, trunk / "checkpoint-80" / "model.safetensors")
    with pytest.raises(CheckpointError, match="w has weights that are no numbers"):
        merged(trunk)
    assert list((trunk / "_merged").glob("*/")) == []


def test_checkpoints_with_other_tensors_are_refused(trunk):
    save_file({"w": tensors(70)["w"]}, trunk / "checkpoint-70" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint-70 has other tensors .*\['count', 'half'\]"):
        merged(trunk)


@pytest.mark.parametrize(
    ("at", "steps", "says"),
    [
        (100, 20, "at least 3 checkpoints from step 81 to 100, .* has 85, 100: train with --keep-every 2 "),
        (100, 99, "the warmup phase from step 0 is among them"),
        (200, 140, "the last of them near the end, and .* has 70, 80, 85, 100"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_repair(trunk, at, steps, says):
    with pytest.raises(ForkError, match=says):
        plan_merge(read_run(trunk), at, num_decay_steps=steps)


def test_a_window_over_the_decay_of_a_line_is_refused(tmp_path):
    line = wsd_s(cycle_ends=[50, 100])
    for step in (45, 50, 60, 70, 80):
        save(tmp_path, step, schedule=line)
    with pytest.raises(ForkError, match="the decay phase from step 45 is among them"):
        plan_merge(read_run(tmp_path), 80, num_decay_steps=40)


def test_a_merge_is_not_published(trunk):
    save(trunk, 140, kind="post-decay", schedule=TRUNK.fork(100, decay_steps=40))
    before = [revision.name for revision in revisions(read_run(trunk))]
    write_merge(plan_merge(read_run(trunk), 100, num_decay_steps=40))
    assert [revision.name for revision in revisions(read_run(trunk))] == before


def test_a_script_that_nobody_can_evaluate_gets_its_preview_and_a_hint(trunk, capsys):
    with command_line("hf-wsd", "merge", trunk, "--at", "100", "--decay-steps", "40"), pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "give --eval-command 'python my_eval.py {model}'" in capsys.readouterr().out


@pytest.mark.slow
def test_the_preview_of_a_real_trunk_loads_and_is_evaluated_beside_trunk_and_branch(tmp_path):
    run, data = tmp_path / "run", ("--decay_fraction", "0.25", "--keep_every", "2", "--learning_rate", "2e-2")
    command([ROOT / "recipes" / "pretrain.py", "--output_dir", run, *TINY, *data, "--budgets", "40", "80"])
    merge = ["-m", "hf_wsd.cli", "merge", run, "--at", "40", "--json"]
    (told,) = json.loads(command(merge).stdout)
    assert (told["preview"], told["fork"], told["end"], told["branch"]) == (True, 30, 40, "30-1-sqrt-10")
    assert (told["checkpoints"], sum(told["coefficients"])) == ([32, 34, 36, 38, 40], pytest.approx(1))
    assert told["losses"].keys() == told["trunk_losses"].keys() == {"loss", "perplexity", "bits_per_byte"}
    assert told["branch_losses"] == dict(read_run(run).branches[0].losses_at(40))
    folder = run / "_merged" / "30-1-sqrt-10"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert json.loads(command(merge).stdout) == [told]
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
