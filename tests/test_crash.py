"""Runs that are killed, damaged or out of room: hf_wsd/mending.py, damage.py, room.py and what they hold up.

KILLS=40 pytest tests/test_crash.py -k killed: a longer campaign; SEED=7 another one.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from kills import Job, Kill, differences, repeat
from test_checkpoint import cut_short, make_checkpoint
from trainer_runs import FLAGS, ROOT, SCRIPT, same_weights, train_here

from hf_wsd import WSDLoop, damage, get_scheduler
from hf_wsd.builders import wsd
from hf_wsd.checkpoint import FORK_POINTS, check_checkpoint, newest_whole, step_in_name
from hf_wsd.errors import RunError
from hf_wsd.family import read_run
from hf_wsd.history import read_history
from hf_wsd.keeper import Keeper
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.lock import has_lock
from hf_wsd.loop import accelerator_job
from hf_wsd.mending import announce, finish_saves, make_way
from hf_wsd.room import why_no_room
from hf_wsd.settings import Settings

KILLS, SEED = int(os.environ.get("KILLS", "10")), int(os.environ.get("SEED", "1"))
SAVES = ("--save_strategy", "steps", "--save_steps", 4, "--save_total_limit", 1)
TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", 32, "--max_eval_blocks", 8),
    *("--per_device_train_batch_size", 4, "--warmup_steps", 4, "--use_cpu", "--logging_steps", 1, "--eval_steps", 10),
    *("--decay_fraction", "0.25", "--save_steps", 4, "--save_total_limit", 1),
)
RECORDED = Lineage(step=5, kind="fork", schedule=wsd(100), last_step=100, losses={"loss": 3.5})


# --- killed at any moment ---


def newest(run: Path) -> tuple[object, ...]:
    """What the user of a script types to resume."""
    found, _ = newest_whole(run)
    return () if found is None else ("--resume_from_checkpoint", found)


def script(run: Path) -> Job:
    flags = (*FLAGS, *SAVES, "--eval_steps", 10, "--logging_steps", 1, "--num_train_epochs", 9)
    argv = ("-m", "hf_wsd", "--trunk", "--budgets", 20, 40, "--decay-fraction", 0.25, SCRIPT, "--output_dir", run)
    return Job(argv=(*argv, *flags), run=run, resumes=newest, completes=False)


def recipe(run: Path, *budgets: int) -> Job:
    """A family in one process, or one model."""
    flags = (*TINY, "--disable_tqdm", "True", "--budgets", *(budgets or (8, 16)))
    return Job(argv=(ROOT / "recipes" / "pretrain.py", "--output_dir", run, *flags), run=run)


def loop(run: Path) -> Job:
    flags = (*TINY, "--trunk", "--budgets", 20, 40)
    return Job(argv=(ROOT / "recipes" / "pretrain_no_trainer.py", "--output_dir", run, *flags), run=run)


ASK = """
    from transformers import TrainerCallback
    from hf_wsd import WSDCallback

    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                [ours] = [one for one in trainer.callback_handler.callbacks if isinstance(one, WSDCallback)]
                ours.decay_now(num_decay_steps=6)

    trainer.add_callback(Ask())
    trainer.train("""


def on_demand(run: Path) -> Job:
    """A trunk that is asked for its decay in its step 10, which comes after step 11: our callback has been called."""
    script = run.parent / "train_and_decay.py"
    script.write_text(SCRIPT.read_text().replace("\n    trainer.train(", ASK))
    flags = (*FLAGS, *SAVES, "--eval_steps", 10, "--logging_steps", 1, "--max_steps", 40)
    argv = ("-m", "hf_wsd", "--trunk", script, "--output_dir", run, *flags)
    return Job(argv=argv, run=run, resumes=newest, completes=False)


def random_kill(rng: random.Random, *, seconds: float, changes: int) -> Kill:
    by_time = rng.random() < 0.3
    return Kill(after=rng.uniform(0, seconds)) if by_time else Kill(before_change=rng.randint(1, changes))


@pytest.mark.slow
@pytest.mark.parametrize("job", [script, recipe, loop, on_demand], ids=lambda job: job.__name__)
def test_command_killed_and_repeated_ends_as_if_it_had_not_been(job, tmp_path):
    changes = job(whole := tmp_path / "whole").changes()
    begin = time.monotonic()
    assert job(tmp_path / "again").finished().is_dir()
    seconds = time.monotonic() - begin
    rng, killed, runs = random.Random(SEED), 0, 0
    while killed < KILLS * 0.3:
        repeated = job(tmp_path / f"run-{(runs := runs + 1)}")
        kills = (random_kill(rng, seconds=seconds, changes=changes) for _ in range(rng.randint(1, 3)))
        killed += repeat(repeated, kills)
        may_lack = [] if repeated.completes else ["whole: model"]
        assert [text for text in differences(whole, repeated.run) if text not in may_lack] == []
        shutil.rmtree(repeated.run)


@pytest.mark.slow
def test_decay_killed_with_its_branches_and_repeated_ends_as_if_it_had_not_been(tmp_path):
    run = tmp_path / "run"
    recipe_argv = (ROOT / "recipes" / "pretrain.py", "--output_dir", run, *TINY, "--disable_tqdm", "True")
    Job(argv=(*recipe_argv, "--trunk", "--budgets", 20), run=run).finished()
    trunk = Path(shutil.copytree(run, tmp_path / "trunk"))
    decay = Job(argv=("-m", "hf_wsd.cli", "decay", run), run=run)
    whole = Path(shutil.copytree(decay.finished(), tmp_path / "whole"))
    rng, killed = random.Random(SEED), 0
    windows = ("_saving", "checkpoint-*/trainer_state.json", "checkpoint-*/wsd.json", "_fork-points/.*", "config.json")
    while killed < KILLS * 0.1:
        shutil.rmtree(run)
        shutil.copytree(trunk, run)
        killed += repeat(decay, [Kill(when=f"_branches/*/{rng.choice(windows)}", after=rng.uniform(0, 0.02))])
        assert differences(whole, run) == []


# --- what a kill leaves ---


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_save_killed_before_its_record_gets_record_and_kept_copy(run):
    announce(run / "checkpoint-5", RECORDED)
    own = make_checkpoint(run, 5)
    finish_saves(run)
    assert Lineage.read(own) == Lineage.read(run / FORK_POINTS / own.name) == RECORDED
    assert sorted(path.name for path in run.iterdir()) == [FORK_POINTS, own.name]


def test_save_killed_over_an_older_one_leaves_the_older_one(run):
    own = make_checkpoint(run, 5)
    torch.save({"state": "older"}, own / "optimizer.pt")
    announce(own, RECORDED)
    make_way(own)
    cut_short(make_checkpoint(run, 5) / "optimizer.pt")
    finish_saves(run)
    assert torch.load(own / "optimizer.pt") == {"state": "older"}
    assert [path.name for path in run.iterdir()] == [own.name]


def test_save_that_is_whole_stays_where_its_older_one_was(run):
    make_way(make_checkpoint(run, 5))
    own = make_checkpoint(run, 5)
    announce(own, RECORDED)
    torch.save({"state": "newer"}, own / "optimizer.pt")
    finish_saves(run)
    assert torch.load(own / "optimizer.pt") == {"state": "newer"}
    assert sorted(path.name for path in run.iterdir()) == [FORK_POINTS, own.name]


def test_save_over_a_kept_checkpoint_does_not_write_through_its_links(run):
    keeper = Keeper(run, RECORDED, {5: "fork"})
    keeper.begin(0, tokens=None)
    for state in ("older", "newer"):
        assert keeper.make_ready(5)
        torch.save({"state": state}, make_checkpoint(run, 5) / "optimizer.pt")
        if state == "older":
            keeper.save(5)
    assert torch.load(run / FORK_POINTS / "checkpoint-5" / "optimizer.pt") == {"state": "older"}
    keeper.save(5)
    assert torch.load(run / FORK_POINTS / "checkpoint-5" / "optimizer.pt") == {"state": "newer"}


@pytest.mark.slow
def test_lost_record_is_written_again_with_its_losses(run):
    flags = ("--save_strategy", "steps", "--save_steps", 4, "--eval_steps", 4)
    train_here(run, "--max_steps", 8, *flags, launch=("--trunk",))
    written = Lineage.read(run / "checkpoint-8")
    for folder in run.glob("**/checkpoint-8"):
        (folder / RECORD).unlink()
    train_here(run, "--max_steps", 12, *flags, "--resume_from_checkpoint", run / "checkpoint-8", launch=("--trunk",))
    again = Lineage.read(run / "checkpoint-8")
    assert (again.losses, again.tokens, again.schedule) == (written.losses, written.tokens, written.schedule)
    assert (again.evaluation, again.parameters_without_embeddings) == (
        written.evaluation,
        written.parameters_without_embeddings,
    )


@pytest.mark.slow
def test_recipe_goes_on_from_a_checkpoint_that_has_lost_its_record(run):
    job = recipe(run, 24)
    assert job.killed(Kill(when="checkpoint-12/wsd.json", after=0))
    for folder in run.glob("**/checkpoint-*"):
        (folder / RECORD).unlink(missing_ok=True)
    step = check_checkpoint(newest_whole(run)[0])
    job.finished()
    assert f"hf_wsd: continue at step {step}" in job.log.read_text()
    assert set(read_run(run).records) >= {18, 24}  # fork point and end


@pytest.mark.slow
def test_command_goes_on_without_a_fork_point_that_could_not_be_saved(run, caplog):
    flags = ("--save_strategy", "steps", "--save_steps", 4)
    budgets = ("--trunk", "--budgets", 8, 16, "--num-decay-steps", 2)
    train_here(run, *flags, launch=budgets)
    for step in (6, 14):
        for folder in run.glob(f"**/checkpoint-{step}"):
            shutil.rmtree(folder)
    train_here(run, *flags, "--resume_from_checkpoint", run / "checkpoint-12", launch=budgets)
    assert "budget 8 needs a checkpoint at step 6, which is past" in caplog.text
    assert sorted(path.name for path in (run / FORK_POINTS).iterdir()) == ["checkpoint-14"]


# --- damaged ---


@pytest.fixture
def resumes_newest(tmp_path):
    """A script that leaves it to Trainer to find its newest checkpoint."""
    resumes = "resume_from_checkpoint=training_args.resume_from_checkpoint"
    assert resumes in SCRIPT.read_text()
    script = tmp_path / "train_newest.py"
    script.write_text(SCRIPT.read_text().replace(resumes, "resume_from_checkpoint=True"))
    return script


@pytest.fixture
def begun(run):
    """A trunk that was cut short in the save of its step 8."""
    flags = ("--max_steps", 12, "--save_strategy", "steps", "--save_steps", 4)
    train_here(run, *flags, launch=("--trunk",))
    whole = run.rename(run.with_name("whole"))
    shutil.copytree(whole / "checkpoint-4", run / "checkpoint-4")
    shutil.copytree(whole / "checkpoint-8", run / "checkpoint-8")
    (run / "checkpoint-8" / "trainer_state.json").unlink()
    return run, whole, flags


def test_damaged_newest_checkpoint_is_named_and_kept_from_trainer(begun, resumes_newest, caplog):
    run, whole, flags = begun
    train_here(run, *flags, launch=("--trunk",), script=resumes_newest)
    assert f"passed over: {run}/checkpoint-8 is damaged: no trainer_state.json" in caplog.text
    assert same_weights(run / "checkpoint-12", whole / "checkpoint-12")


def test_damaged_newest_checkpoint_is_refused_where_the_user_says_so(begun, resumes_newest):
    run, _, flags = begun
    with pytest.raises(SystemExit, match=r"checkpoint-8 is damaged: no trainer_state.json.*\n.*--on-damage refuse"):
        train_here(run, *flags, launch=("--trunk", "--on-damage", "refuse"), script=resumes_newest)
    assert sorted(path.name for path in run.glob("*checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_damaged_checkpoint_that_the_user_named_is_refused_in_our_words(begun):
    run, _, flags = begun
    with pytest.raises(SystemExit, match=r"checkpoint-8 cannot be resumed exactly: no trainer_state.json"):
        train_here(run, *flags, "--resume_from_checkpoint", run / "checkpoint-8", launch=("--trunk",))


@pytest.fixture
def another_process(run):
    """One that has the lock on the run."""
    run.mkdir()
    code = f"import pathlib, hf_wsd.lock as l; l.take_lock(pathlib.Path({str(run)!r})); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        yield process
        process.kill()


@pytest.mark.slow  # it is waited for
def test_what_looks_damaged_while_another_process_trains_there_is_left_alone(run, another_process):
    (own := make_checkpoint(run, 5) / "trainer_state.json").unlink()
    damage.mend(run, Settings())
    assert own.parent.is_dir()


@pytest.mark.slow
def test_second_job_in_a_folder_is_refused(run, another_process):
    with pytest.raises(RunError, match="a process is already training in"):
        Keeper(run, RECORDED, {}).begin(0, tokens=None)


def test_job_that_follows_a_killed_one_waits_for_its_orphans(run, another_process):
    threading.Timer(0.3, another_process.kill).start()
    keeper = Keeper(run, RECORDED, {})
    keeper.begin(0, tokens=None)
    assert has_lock(run)


def test_kept_copy_is_put_where_trainer_looks_if_nothing_newer_is_whole(run):
    make_checkpoint(run / FORK_POINTS, 5)
    (run / "checkpoint-8").mkdir()
    damage.mend(run, Settings())
    assert check_checkpoint(run / "checkpoint-5") == 5


def test_evaluating_a_run_that_saves_weights_alone_moves_none_of_its_checkpoints(run):
    own = make_checkpoint(run, 5)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (own / name).unlink()
    damage.mend(run, Settings())
    assert own.is_dir()


# --- no room ---


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A block in which the system refuses to write larger files, as it refuses on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_that_find_no_room_are_written_later_and_in_order(run, caplog):
    keeper = Keeper(run, RECORDED, {})
    keeper.begin(0, tokens=None)
    keeper.log({"step": 1})
    with files_of_at_most(20):
        for step in (2, 3):
            keeper.log({"step": step})
    keeper.log({"step": 4})
    assert [row["step"] for row in read_history(run)] == [1, 2, 3, 4]
    assert len([record for record in caplog.records if "could not be written" in record.getMessage()]) == 1


def test_checkpoint_larger_than_what_is_free_has_no_room(tmp_path):
    assert "are free" in str(why_no_room(tmp_path, 2 * shutil.disk_usage(tmp_path).total))


@pytest.fixture
def own_loop(run):
    """A loop of one's own with a model of 160 kB, and its optimizer."""
    for state in (states := (AcceleratorState, GradientState, PartialState)):
        state._reset_state()
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(200, 200)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_scheduler("wsd", optimizer, 0, 3, {"num_decay_steps": 1})
    accelerator.register_for_checkpointing(scheduler)
    model, optimizer = accelerator.prepare(model, optimizer)
    job = accelerator_job(accelerator, batch_size=1, folder=run, step=0, max_steps=3)
    yield WSDLoop(accelerator, scheduler, job, model=model, dataset=None), optimizer
    for state in states:
        state._reset_state()


def test_loop_goes_on_where_a_save_fails_in_the_middle(own_loop, run, caplog):
    with files_of_at_most(100_000):
        assert not own_loop[0].save().exists()
    assert "could not be saved" in caplog.text
    assert check_checkpoint(own_loop[0].save()) == 0
    assert [path.name for path in run.glob("*checkpoint*")] == ["checkpoint-0"]


def test_loop_raises_where_its_last_save_fails(own_loop):
    loop, optimizer = own_loop
    for _ in range(3):
        optimizer.step()
        loop.update()
    with files_of_at_most(100_000), pytest.raises(Exception, match="File too large"):
        loop.save()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB that its own processes alone see: how to start one, its folder, and where we see that."""
    if not all(map(shutil.which, ("unshare", "nsenter", "setpriv"))):
        pytest.skip("this system has no user namespaces")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=2m tmpfs {folder} && echo mounted && exec sleep infinity"
    with subprocess.Popen(["unshare", "-Urm", "sh", "-c", mount], stdout=subprocess.PIPE) as holder:
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip("this system lets no user mount a file system of his own")
        enter = ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder.pid))
        as_user = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")  # root may write anywhere
        yield (*enter, *as_user), folder, Path(f"/proc/{holder.pid}/root{folder}")
        holder.kill()


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(2**16)):
            pass


def empty(disk: Path) -> None:
    (disk / "ballast").unlink()


def lock_up(disk: Path) -> None:
    (disk / "run").chmod(0o555)


def open_up(disk: Path) -> None:
    (disk / "run").chmod(0o755)


def wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "repair"), [(fill, empty), (lock_up, open_up)], ids=["full disk", "no permission"])
def test_training_goes_on_without_room_and_its_last_checkpoint_waits_for_it(small_disk, tmp_path, harm, repair):
    enter, disk, seen = small_disk
    flags = (*FLAGS, "--max_steps", 120, *SAVES, "--logging_steps", 1)
    train_here(whole := tmp_path / "whole", *flags, launch=("--trunk",))
    argv = [sys.executable, "-m", "hf_wsd", "--trunk", SCRIPT, "--output_dir", disk / "run", *flags]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([*enter, *map(str, argv)], stdout=stream, stderr=subprocess.STDOUT)
    while not (seen / "run" / "checkpoint-8" / RECORD).exists():
        assert process.poll() is None, log.read_text()[-3000:]
    harm(seen)
    wait_for(log, "cannot be saved", process)
    wait_for(log, "step 120 waits up to 300 s for room", process)
    assert newest_whole(seen / "run") == (max((seen / "run").glob("checkpoint-*"), key=step_in_name), [])
    repair(seen)
    assert process.wait() == 0, log.read_text()[-3000:]
    assert same_weights(seen / "run" / "checkpoint-120", whole / "checkpoint-120")
    assert [row["step"] for row in read_history(seen / "run")] == [row["step"] for row in read_history(whole)]
