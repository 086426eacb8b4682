"""recipes/evaluate_model.py against what the runs' own evaluations have recorded; and any evaluation command."""

import json
import shlex
import sys
from dataclasses import replace

import evaluate_model
import held_out
import pytest
from blocks import DataArguments, load_tokenizer
from test_recipe import TINY, pretrain_here
from trainer_runs import ROOT, command, command_line, record_command

from hf_wsd.errors import RunError
from hf_wsd.evaluating import losses_in, recipe_evaluation, run_evaluation
from hf_wsd.family import read_run
from hf_wsd.lineage import Command, Lineage

FLAGS = (*TINY, "--budgets", "20", "--decay_fraction", "0.25")


@pytest.fixture
def run(tmp_path):
    """A run whose record says how a user would have started it."""
    run = pretrain_here(tmp_path / "run", *FLAGS[len(TINY) :], decay=())
    argv = (str(ROOT / "recipes" / "pretrain.py"), "--output_dir", str(run), *FLAGS)
    record_command(run, Command(argv=argv, cwd=str(tmp_path)))
    return run


def printed(capsys, *argv):
    capsys.readouterr()
    with command_line("evaluate_model.py", *argv):
        evaluate_model.main()
    return json.loads(capsys.readouterr().out)


def test_the_losses_are_those_that_the_run_has_recorded(run, capsys):
    recorded = read_run(run).losses_at(20)
    found = printed(capsys, run / "checkpoint-20")
    assert {name: found[name] for name in recorded} == pytest.approx(recorded, abs=1e-6)
    assert (found["blocks"], found["block_size"]) == (8, 32)


@pytest.mark.slow
def test_a_model_from_elsewhere_is_evaluated_on_the_blocks_of_a_run_with_flags_that_replace_its_own(
    run, tmp_path, capsys
):
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoint-20").rename(elsewhere)
    (elsewhere / "wsd.json").unlink()
    with pytest.raises(RunError, match=r"give flags of recipes/pretrain\.py after --"):
        printed(capsys, elsewhere)
    own = printed(capsys, elsewhere, "--run", run, "--", "--max_eval_blocks", "4")
    assert (own["model"], own["blocks"]) == (str(elsewhere), 4)


def test_a_model_with_another_tokenizer_is_refused(tmp_path):
    tokenizer = load_tokenizer(DataArguments())
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RunError, match=r"has another tokenizer \(2049 tokens\) than the blocks \(2048\)"):
        evaluate_model.evaluate(str(tmp_path), held_out.held_out(tmp_path, None, FLAGS))


def test_only_runs_of_the_recipes_bring_an_evaluation(tmp_path):
    ours = Command(argv=(str(ROOT / "recipes" / "pretrain.py"),), cwd=str(tmp_path))
    assert "evaluate_model.py" in recipe_evaluation(ours)
    assert recipe_evaluation(replace(ours, argv=("recipes/pretrain.py",), cwd=str(ROOT))) == recipe_evaluation(ours)
    assert recipe_evaluation(replace(ours, argv=("run_clm.py",))) == ""


def script(tmp_path, text):
    file = tmp_path / "eval.py"
    file.write_text(f"import json, sys\nmodel, *more = sys.argv[1:]\n{text}")
    return shlex.join([sys.executable, str(file)])


def test_the_last_line_that_is_json_is_what_an_evaluation_says(tmp_path):
    text = script(tmp_path, "print('loading'); print(json.dumps({'loss': 3.5, 'model': model})); print('done')")
    assert run_evaluation(f"{text} {{model}}", tmp_path) == {"loss": 3.5, "model": str(tmp_path)}


def test_a_file_below_the_output_folder_is_read_instead(tmp_path):
    text = script(
        tmp_path, "open(more[0] + '/results_1.json', 'w').write('{\"results\": {\"acc\": 0.5}}'); print('{}')"
    )
    assert run_evaluation(f"{text} {{model}} {{output}}", tmp_path) == {"results": {"acc": 0.5}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sys.exit('no such task')", r"failed \(exit 1\): .*\nno such task"),
        ("print('loss 3.5')", "wrote no JSON table"),
    ],
)
def test_an_evaluation_that_fails_says_what_it_said(tmp_path, text, says):
    with pytest.raises(RunError, match=says):
        run_evaluation(f"{script(tmp_path, text)} {{model}}", tmp_path)


def test_whole_number_that_is_called_a_loss_is_one():
    assert losses_in({"loss": 3, "blocks": 64, "acc": 1}) == {"loss": 3.0, "acc": 1.0}


def test_an_evaluation_that_names_no_model_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"does not say where the model.s folder goes: write \{model\} there"):
        run_evaluation("lm_eval --tasks piqa", tmp_path)


@pytest.mark.slow
def test_the_losses_of_a_run_with_batches_of_its_own_are_those_that_it_has_recorded(tmp_path):
    run, data = tmp_path / "run", tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"{n} and {n * n}. " * 9}) + "\n" for n in range(300)))
    flags = ("--train_file", data.name, "--validation_percent", "10", "--per_device_eval_batch_size", "3", "--bf16")
    recipe = ROOT / "recipes" / "pretrain.py"
    command([recipe, "--output_dir", "run", *FLAGS, *flags, "--streaming", "--max_eval_blocks", "7"], cwd=tmp_path)
    found = json.loads(command([ROOT / "recipes" / "evaluate_model.py", run]).stdout)
    recorded = Lineage.read(run / "checkpoint-20").losses
    assert {name: found[name] for name in recorded} == pytest.approx(recorded, abs=1e-6)
