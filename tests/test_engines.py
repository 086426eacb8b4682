"""Families under the accelerate configs of recipes/configs, as their users launch them: real processes on CPU, gloo.

FSDP2 runs through tests/downstream/fsdp_on_cpu.py. What needs DeepSpeed is skipped where it is not installed.
"""

from __future__ import annotations

import json
import os
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
from trainer_runs import FAMILY, FLAGS, ROOT, SCRIPT, command, same_weights, train_here
from transformers import AutoModelForCausalLM, GPT2Config

from hf_wsd.builders import wsd
from hf_wsd.bundle import Page, make_bundle, verify
from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.errors import CheckpointError, RunError
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage
from hf_wsd.revisions import revisions
from hf_wsd.running import read_launcher
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
    file = f"{{deepspeed_config_file: {folder / deepspeed}}}"
    (folder / "own.yaml").write_text(f"distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {file}\n")
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
def test_losses_are_those_of_plain_data_parallel(trained, data_parallel):
    """The lr in the logs is the scheduler's; that the engine trains with it shows in the losses (1.5e-7 apart)."""
    assert losses(trained.straight) == pytest.approx(losses(data_parallel), rel=1e-5)


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory):
    return DDP.train(tmp_path_factory.mktemp("data_parallel") / "run", "--max_steps", 40, launch=STRAIGHT)


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_run(run).history if "loss" in row}


@pytest.mark.slow
def test_resumed_trunk_ends_in_the_same_weights(trained, tmp_path):
    later = shutil.ignore_patterns("_fork-points", "_branches", "checkpoint-30")
    again = Path(shutil.copytree(trained.run, tmp_path / "run", ignore=later))
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
def test_decayed_model_can_be_published_and_loses_what_it_did_under_data_parallel(trained, data_parallel, tmp_path):
    found = []
    for run in (trained.run, data_parallel):
        (revision,) = revisions(read_run(run))
        folder = tmp_path / run.name / str(len(found))
        folder.mkdir(parents=True)
        make_bundle(revision, Page(repo="user/family", siblings=(revision,)), folder)
        found.append(verify(revision, folder))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_decayed_model_is_loaded_by_from_pretrained(trained, tmp_path):
    model = trained.branch
    shards = model / "checkpoint-40" / "pytorch_model_fsdp_0"
    if shards.is_dir():  # as the config says: merged first
        command(["-m", "accelerate.commands.accelerate_cli", "merge-weights", shards, tmp_path])
        GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2).save_pretrained(tmp_path)
        model = tmp_path
    loaded, told = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"] | told["mismatched_keys"]
    assert loaded.num_parameters() == read_run(trained.branch).latest.parameters


# --- another launcher, several machines ---


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def machine(rank: int, port: int) -> tuple[object, ...]:
    """The launcher's arguments on one of two machines; here they are one."""
    address = ("--machine_rank", rank, "--main_process_port", port)
    return (*LAUNCH, config_file("multi_node"), "--num_processes", 2, *address)


def start(argv: list[object]) -> subprocess.Popen[bytes]:
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, *map(str, argv)], env=env, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory):
    """A trunk that two machines of one process each have trained."""
    run, port = tmp_path_factory.mktemp("two machines") / "run", free_port()
    trunk = ("-m", "hf_wsd", *FAMILY, SCRIPT, "--output_dir", run, *OF_TWO, "--num_train_epochs", 9)
    second = start([*machine(1, port), *trunk])
    command([*machine(0, port), *trunk], ACCELERATE_USE_CPU="true")
    assert second.wait() == 0
    return run


@pytest.mark.slow
def test_trunk_of_two_machines_is_not_decayed_on_one_unasked(two_machines):
    result = command([*CLI, "decay", two_machines, "--budgets", 40], check=False)
    assert result.returncode == 1
    assert "the trunk ran on 2 machines (2 processes)" in result.stderr
    assert not (two_machines / "_branches").exists()


@pytest.mark.slow
def test_branch_of_two_machines_equals_the_straight_run(two_machines, data_parallel, tmp_path):
    """The first machine decays; the second runs the line that the same command prints for its rank."""
    run, port = Path(shutil.copytree(two_machines, tmp_path / "run")), free_port()
    decay = [*CLI, "decay", run, "--budgets", 40, "--launcher"]
    launchers = [shlex.join(map(str, (sys.executable, *machine(rank, port)))) for rank in (0, 1)]
    line = command([*decay, launchers[1], "--dry-run"]).stdout
    first = start([*decay, launchers[0]])
    branch = run / "_branches" / "30-1-sqrt-10"
    while not (branch / "wsd.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(line, shell=True, check=False, capture_output=True)
    assert (first.wait(), second.returncode) == (0, 0)
    assert same_weights(branch / "checkpoint-40", data_parallel / "checkpoint-40")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    ["torchrun --standalone --nproc_per_node 2", "accelerate launch --config_file ddp.yaml " + " ".join(TWO)],
)
def test_branch_by_another_launcher_equals_the_straight_run(two_machines, data_parallel, tmp_path, launcher):
    run = Path(shutil.copytree(two_machines, tmp_path / "run"))
    decay = [*CLI, "decay", run, "--budgets", 40, "--launcher", launcher]
    command(decay, cwd=config_file("ddp").parent, ACCELERATE_USE_CPU="true")  # the branch runs in another folder
    assert same_weights(run / "_branches" / "30-1-sqrt-10" / "checkpoint-40", data_parallel / "checkpoint-40")


@pytest.mark.slow
def test_launchers_variables_are_its_own_affair(two_machines):
    decay = [*CLI, "decay", two_machines, "--budgets", 40, "--dry-run", "--json", "--launcher"]
    shell = json.loads(command([*decay, "torchrun --nproc_per_node 2"]).stdout)[0]["shell"]
    assert "ACCELERATE_MIXED_PRECISION" in Lineage.read(two_machines / "checkpoint-30").command.environment
    assert "ACCELERATE_" not in shell
    assert "HF_WSD_BRANCH=" in shell


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("", "--launcher is empty"),
        ("torchrun 'unclosed", "no command line: No closing quotation"),
        ("no-such-launcher --nodes 2", "there is no program no-such-launcher"),
    ],
)
def test_launcher_that_cannot_be_run_is_refused(launcher, message):
    with pytest.raises(RunError, match=message):
        read_launcher(launcher)


# --- a scheduler that is not ours ---


@needs_deepspeed
@pytest.mark.slow
def test_scheduler_section_of_deepspeed_is_refused_by_name(tmp_path):
    section = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}}
    (tmp_path / "ds.json").write_text(json.dumps(OWN_OPTIMIZER | section))
    engine = replace(ZERO, config=config_with(tmp_path, "ds.json"))
    with pytest.raises(AssertionError, match=rf'section "scheduler" \(WarmupLR\) of its config {tmp_path}/ds.json'):
        engine.train(tmp_path / "run", "--max_steps", 40, launch=STRAIGHT)


def test_scheduler_of_the_scripts_own_is_refused_where_ours_was_asked_for(tmp_path):
    script = tmp_path / "train_own.py"
    constant = "optimizers=(AdamW(model.parameters()), ConstantLR(AdamW(model.parameters())))"
    text = SCRIPT.read_text().replace("model=GPT2LMHeadModel(config)", f"model=model, {constant}")
    text = text.replace("    trainer = Trainer(", "    model = GPT2LMHeadModel(config)\n    trainer = Trainer(")
    script.write_text(f"from torch.optim import AdamW\nfrom torch.optim.lr_scheduler import ConstantLR\n{text}")
    with pytest.raises(
        SystemExit, match="--lr_scheduler_type wsd would be ignored: the script trains with a ConstantLR"
    ):
        train_here(tmp_path / "run", "--max_steps", 40, script=script)


class ZeroOptimizer:
    """As DeepSpeed's ZeRO optimizer: no torch optimizer, around one."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


def test_stale_lr_of_an_optimizer_loaded_later_loses_behind_two_wrappers():
    inner = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    stale = inner.state_dict()
    wrapped = AcceleratedOptimizer(ZeroOptimizer(inner), device_placement=False)
    WSDScheduler(wrapped, wsd(10, num_warmup_steps=5))
    inner.load_state_dict(stale)
    assert inner.param_groups[0]["lr"] == 0.0


# --- skipped updates ---


def test_updates_that_a_real_scaler_skips_do_not_shift_the_schedule(tmp_path):
    """Accelerate makes a GradScaler on GPUs alone, but uses the one that it is given: the squares of
    attention's backward pass overflow from a scale of 2^64 on.

    Not with the fused AdamW: its kernel skips by itself, and Accelerate counts the update as made.
    """
    script = tmp_path / "train_scaled.py"
    scaler = 'trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**68, growth_interval=8)'
    script.write_text(SCRIPT.read_text().replace("    trainer.train(", f"    {scaler}\n    trainer.train("))
    flags = ("--max_steps", 40, "--logging_steps", 1, "--max_grad_norm", 0, "--optim", "adamw_torch")
    run = train_here(tmp_path / "run", *flags, launch=STRAIGHT, script=script)
    record = Lineage.read(run / "checkpoint-40")
    assert 0 < record.skipped_updates < 40
    lrs = {row["step"]: row["learning_rate"] for row in read_run(run).history if "learning_rate" in row}
    assert lrs == {step: 1e-2 * record.schedule(step - 1) for step in range(1, 41)}
