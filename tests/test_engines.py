"""Families under the accelerate configs of recipes/configs, as their users launch them: real processes on CPU, gloo.

FSDP2 runs through tests/downstream/fsdp_on_cpu.py. What needs DeepSpeed is skipped where it is not installed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from trainer_runs import FAMILY, FLAGS, ROOT, SCRIPT, command, same_weights, train_here
from transformers import AutoModelForCausalLM

from hf_wsd.builders import wsd
from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.errors import CheckpointError
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage
from hf_wsd.scheduler import WSDScheduler

CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
FSDP_ON_CPU = ROOT / "tests" / "downstream" / "fsdp_on_cpu.py"
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file")
CLI = ("-m", "hf_wsd.cli")
TWO = ("--num_processes", "2", "--main_process_port", "0")  # 0: any that is free
OF_TWO = (*FLAGS, "--per_device_train_batch_size", "2", "--logging_steps", "1")
STRAIGHT = ("--decay-fraction", "0.25")

each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed: make downstream")


def config_file(name: str) -> Path:
    return ROOT / "recipes" / "configs" / f"{name}.yaml"


# --- the files ---


@each_config
def test_config_is_loaded_by_accelerate(config):
    assert load_config_from_file(str(config)).num_processes > 1


@each_config
def test_every_key_of_a_config_is_one_that_accelerate_launch_reads(config):
    """Accelerate passes over a nested key that it does not know."""
    loaded = load_config_from_file(str(config))
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert [key for key in {**loaded.fsdp_config, **loaded.deepspeed_config} if key not in known] == []


@each_config
def test_config_says_how_it_is_launched(config):
    header = config.read_text().partition("\n\n")[0]
    assert f"accelerate launch --config_file recipes/configs/{config.name} " in header


# --- a family under each engine ---


@dataclass(frozen=True, kw_only=True)
class Engine:
    config: str
    flags: tuple[str, ...] = ()  # of the launcher
    before: tuple[Path, ...] = ()  # the script
    of_script: tuple[str, ...] = ("--use_cpu",)
    environment: tuple[tuple[str, str], ...] = (("ACCELERATE_USE_CPU", "true"),)

    def train(self, run: Path, *flags: object, launch: tuple[object, ...]) -> Path:
        launcher = (*LAUNCH, config_file(self.config), *TWO, *self.flags, "-m", "hf_wsd", *launch)
        ours = [flag for flag in OF_TWO if flag != "--use_cpu"]
        argv = [*launcher, *self.before, SCRIPT, "--output_dir", run, *ours, *self.of_script, *flags]
        command(argv, **dict(self.environment))
        return run

    def trunk(self, run: Path) -> Path:
        return self.train(run, "--num_train_epochs", 9, launch=FAMILY)

    def decay(self, run: Path, *flags: object) -> Path:
        command([*CLI, "decay", run, "--budgets", 40, *flags], **dict(self.environment))
        return run / "_branches" / "30-1-sqrt-10"


DDP = Engine(config="ddp")
FSDP = Engine(config="fsdp2", before=(FSDP_ON_CPU,))
# Without --use_cpu: Accelerate does not start DeepSpeed then. Its own device choice falls back to the CPU.
ZERO = Engine(config="deepspeed_zero1", of_script=("--ddp_backend", "gloo"), environment=(("DS_ACCELERATOR", "cpu"),))
OWN_OPTIMIZER = {
    "zero_optimization": {"stage": 1},
    "gradient_clipping": "auto",
    **dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"), "auto"),
    "optimizer": {
        "type": "AdamW",
        "params": {**dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"), "torch_adam": True},
    },
}
ENGINES = {
    "ddp": DDP,
    "fsdp2": FSDP,
    "fsdp2 sharded": replace(FSDP, flags=("--fsdp_state_dict_type", "SHARDED_STATE_DICT")),
    "zero1": ZERO,
    "zero2": replace(ZERO, config="deepspeed_zero2"),
    "deepspeed's own optimizer": ZERO,  # DeepSpeed steps the scheduler then, and keeps its state
}
NEEDS_DEEPSPEED = [name for name, engine in ENGINES.items() if engine.config.startswith("deepspeed")]


@dataclass(frozen=True)
class Trained:
    engine: Engine
    run: Path
    branch: Path
    straight: Path


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=needs_deepspeed if name in NEEDS_DEEPSPEED else ()) for name in ENGINES],
)
def trained(request, tmp_path_factory):
    """A trunk, its branch by `hf-wsd decay`, and the straight run of the same schedule."""
    folder, engine = tmp_path_factory.mktemp("family"), ENGINES[request.param]
    if request.param == "deepspeed's own optimizer":
        (folder / "ds.json").write_text(json.dumps(OWN_OPTIMIZER))
        engine = replace(engine, config=config_with(folder, "ds.json"))
    run = engine.trunk(folder / "run")
    straight = engine.train(folder / "straight", "--max_steps", 40, launch=STRAIGHT)
    return Trained(engine, run, engine.decay(run), straight)


def config_with(folder: Path, deepspeed: str) -> str:
    """A config that names a DeepSpeed file, as `config_file` finds it."""
    text = f"distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  deepspeed_config_file: {folder / deepspeed}"
    (folder / "own.yaml").write_text(text)
    return str(folder / "own")


def shards(checkpoint: Path) -> dict[str, bytes]:
    """The files with weights, as FSDP saves them in parts, or whole."""
    files = [*checkpoint.glob("pytorch_model_fsdp_0/*.distcp"), *checkpoint.glob("model.safetensors")]
    assert files
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.slow
def test_branch_equals_the_straight_run_bit_for_bit(trained):
    assert shards(trained.branch / "checkpoint-40") == shards(trained.straight / "checkpoint-40")


@pytest.mark.slow
def test_lr_in_the_logs_is_the_schedules_at_every_update(trained):
    for run, first, last in ((trained.run, 1, 30), (trained.branch, 31, 40)):
        schedule = Lineage.read(run / f"checkpoint-{last}").schedule
        lrs = {row["step"]: row["learning_rate"] for row in read_run(run).history if "learning_rate" in row}
        assert lrs == {step: 1e-2 * schedule(step - 1) for step in range(first, last + 1)}


@pytest.mark.slow
def test_losses_are_those_of_one_process_with_the_same_batches(trained, alone):
    """The lr in the logs is the scheduler's; that the engine trains with it shows in the losses."""
    assert losses(trained.straight) == pytest.approx(losses(alone), rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The straight run in this process. Without dropout two processes make the same update as one."""
    flags = ("--max_steps", 40, "--logging_steps", 1)
    return train_here(tmp_path_factory.mktemp("alone") / "run", *flags, launch=STRAIGHT)


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_run(run).history if "loss" in row}


@pytest.mark.slow
def test_resumed_trunk_ends_in_the_same_weights(trained, tmp_path):
    again = Path(shutil.copytree(trained.run, tmp_path / "run", ignore=shutil.ignore_patterns("_*", "checkpoint-30")))
    resume = ("--resume_from_checkpoint", again / "checkpoint-15")
    trained.engine.train(again, "--num_train_epochs", 9, *resume, launch=FAMILY)
    assert shards(again / "checkpoint-30") == shards(trained.run / "checkpoint-30")


@pytest.mark.slow
def test_checkpoint_that_lost_a_part_is_found_damaged(trained, tmp_path):
    parts = ["__1_0.distcp", ".metadata", "*optim_states.pt", "*model_states.pt", "optimizer.pt", "optimizer.bin"]
    whole = trained.run / "checkpoint-30"
    found = [file.relative_to(whole) for part in parts for file in whole.rglob(part)]
    assert found
    for i, part in enumerate(found):
        damaged = Path(shutil.copytree(whole, tmp_path / str(i)))
        (damaged / part).unlink()
        with pytest.raises(CheckpointError):
            check_checkpoint(damaged)


@pytest.mark.slow
def test_decayed_model_is_loaded_by_from_pretrained(trained, tmp_path):
    folder = trained.branch / "checkpoint-40"
    if sharded := (folder / "pytorch_model_fsdp_0").is_dir():  # as the config says: merged first
        merge = ("-m", "accelerate.commands.accelerate_cli", "merge-weights")
        command([*merge, folder / "pytorch_model_fsdp_0", tmp_path])
    weights = load_file((tmp_path if sharded else folder) / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == Lineage.read(folder).parameters
    assert sharded or AutoModelForCausalLM.from_pretrained(trained.branch).num_parameters() == 29_568


# --- launchers ---
