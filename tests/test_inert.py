"""Where the scheduler is not ours, registering changes nothing: the same run, file by file, and no time to speak of."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch
from trainer_runs import ROOT, command
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_wsd.callback import WSDCallback

SCRIPT = ROOT / "tests" / "downstream" / "train_with_callbacks.py"
OWN_ENTRY = """
import runpy, sys
import hf_wsd
hf_wsd.register()
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DOORS = {"plain": [SCRIPT], "own entry": ["-c", OWN_ENTRY, SCRIPT], "launcher": ["-m", "hf_wsd", SCRIPT]}
FLAGS = (
    *("--output_dir", "run", "--lr_scheduler_type", "cosine", "--warmup_steps", 3, "--learning_rate", 1e-2),
    *("--max_steps", 12, "--logging_steps", 1, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2),
    *("--eval_strategy", "steps", "--eval_steps", 2, "--save_strategy", "steps", "--save_steps", 4),
    *("--load_best_model_at_end", "--metric_for_best_model", "eval_loss"),
    *("--report_to", "none", "--use_cpu", "--disable_tqdm", "True"),
)
TIMINGS = re.compile(r'"(train|eval)_(runtime|\w+_per_second)": [0-9.e-]+')


@pytest.fixture(scope="module", params=["own entry", "launcher"])
def pair(request, tmp_path_factory):
    """The folders of two runs: without hf_wsd, and with it behind one of its doors."""
    folders = []
    for name in ("plain", request.param):
        folder = tmp_path_factory.mktemp("inert")
        printed = command([*DOORS[name], *FLAGS], cwd=folder).stdout
        (folder / "callbacks.json").write_text(printed.splitlines()[-1])
        folders.append(folder)
    return folders


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def contents(folder, name):
    """A file's bytes; of a text without the timings."""
    data = (folder / name).read_bytes()
    return TIMINGS.sub("", data.decode()).encode() if name.endswith((".json", ".jsonl", ".md")) else data


@pytest.mark.slow
def test_every_file_of_the_run_has_the_same_bytes(pair):
    plain, ours = pair
    assert files(ours) == files(plain)
    assert {f"run/checkpoint-12/{name}" for name in STATE} <= set(files(plain))
    different = [name for name in files(plain) if contents(plain, name) != contents(ours, name)]
    assert different == ["callbacks.json"]


STATE = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
)


@pytest.mark.slow
def test_other_callbacks_are_the_same_in_the_same_order_and_see_the_same(pair):
    plain, ours = (json.loads((folder / "callbacks.json").read_text()) for folder in pair)
    assert [name for name in ours if name != "WSDCallback"] == plain
    assert len(ours) == len(plain) + 1
    seen, seen_beside_ours = (contents(folder, "events.jsonl") for folder in pair)
    assert seen_beside_ours == seen
    assert seen.count(b"on_evaluate") == 6


# --- what it costs ---

OF_A_STEP = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log")


def test_callback_of_another_scheduler_takes_less_than_ten_microseconds_a_step(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, lr_scheduler_type="cosine", report_to="none")
    state, control = TrainerState(max_steps=10**6), TrainerControl()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    given = {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)}
    callback = WSDCallback()
    callback.on_train_begin(args, state, control, **given)
    events = [getattr(callback, name) for name in OF_A_STEP]

    def microseconds_a_step(steps=500):
        begin = time.process_time()
        for _ in range(steps):
            for event in events:
                event(args, state, control, model=None, train_dataloader=None, logs={}, **given)
        return (time.process_time() - begin) / steps * 1e6

    assert min(microseconds_a_step() for _ in range(20)) < 10  # 5 measured beside other work
