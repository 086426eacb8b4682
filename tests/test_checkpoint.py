"""Checkpoints on disk, found and checked: hf_wsd/checkpoint.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import save_file

from hf_wsd.checkpoint import FORK_POINTS, check_checkpoint, newest_whole, saved_checkpoints
from hf_wsd.errors import CheckpointError


def make_checkpoint(run: Path, step: int) -> Path:
    """What Trainer leaves in a checkpoint, as far as an exact resume needs it."""
    path = run / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    save_file({"weight": torch.arange(12.0), "bias": torch.zeros(3)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(8)}, path / name)
    return path


def cut_short(file: Path, *, by: int = 1) -> None:
    file.write_bytes(file.read_bytes()[:-by])


def safetensors_with_header(content) -> bytes:
    header = json.dumps(content).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.fixture
def checkpoint(tmp_path):
    return make_checkpoint(tmp_path / "run", 5)


# --- whole ---


def test_whole_checkpoint_gives_its_step(checkpoint):
    assert check_checkpoint(checkpoint) == 5


def test_weights_saved_by_torch_are_whole(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(3)}, checkpoint / "pytorch_model.bin")
    assert check_checkpoint(checkpoint) == 5


def test_rng_states_of_several_processes_are_whole(checkpoint):
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert check_checkpoint(checkpoint) == 5


@pytest.fixture
def sharded(checkpoint):
    """What FSDP saves with SHARDED_STATE_DICT."""
    for file, folder in (("model.safetensors", "pytorch_model_fsdp_0"), ("optimizer.pt", "optimizer_0")):
        (checkpoint / file).unlink()
        state = {"a": torch.zeros(500), "b": torch.zeros(500)}
        with pytest.warns(UserWarning, match="save in a single process"):
            torch.distributed.checkpoint.save(state, checkpoint_id=checkpoint / folder)
    return checkpoint


@pytest.fixture
def zero(checkpoint):
    """What DeepSpeed's ZeRO saves on two processes."""
    for file in ("model.safetensors", "optimizer.pt"):
        (checkpoint / file).unlink()
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    (checkpoint / "zero_to_fp32.py").touch()
    (checkpoint / "latest").write_text("global_step5")
    (checkpoint / "global_step5").mkdir()
    for name in ("mp_rank_00_model", "zero_pp_rank_0_mp_rank_00_optim", "bf16_zero_pp_rank_1_mp_rank_00_optim"):
        torch.save({"state": torch.zeros(500)}, checkpoint / "global_step5" / f"{name}_states.pt")
    return checkpoint


def test_folders_of_fsdp_stand_for_weights_and_optimizer(sharded):
    assert check_checkpoint(sharded) == 5


def test_folder_of_deepspeed_stands_for_weights_and_optimizer(zero):
    assert check_checkpoint(zero) == 5


def test_weights_in_several_files_are_whole(checkpoint):
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (checkpoint / "model.safetensors").rename(checkpoint / shards[0])
    save_file({"more": torch.zeros(3)}, checkpoint / shards[1])
    index = {"weight_map": {"weight": shards[0], "bias": shards[0], "more": shards[1]}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check_checkpoint(checkpoint) == 5


# --- damaged ---


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("trainer_state.json", "no trainer_state.json"),
        ("model.safetensors", "no weights"),
        ("optimizer.pt", "no optimizer state"),
        ("scheduler.pt", "no scheduler state"),
        ("rng_state.pth", "no RNG state"),
    ],
)
def test_missing_file_is_named(checkpoint, name, what):
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=what):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("left", [0, 1, 7, 20, 100])
def test_file_cut_short_is_named(checkpoint, name, left):
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:left])
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_file_without_its_last_byte_is_named(checkpoint, name):
    cut_short(checkpoint / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("file", ["pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"])
@pytest.mark.parametrize(
    "lost", [1, 30, 1500, None]
)  # bytes: of the last zip's end, of the last zip, of the one before
def test_damaged_or_missing_shard_of_fsdp_is_named(sharded, file, lost):
    if lost is None:
        (sharded / file).unlink()
    else:
        cut_short(sharded / file, by=lost)
    with pytest.raises(CheckpointError, match=f"{file} is missing or damaged"):
        check_checkpoint(sharded)


@pytest.mark.parametrize("folder", ["pytorch_model_fsdp_0", "optimizer_0"])
@pytest.mark.parametrize("content", [None, b"", b"\x80\x04\x95"])
def test_folder_of_fsdp_that_was_not_saved_to_its_end_is_named(sharded, folder, content):
    (sharded / folder / ".metadata").unlink()
    if content is not None:
        (sharded / folder / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{folder} was not saved to its end"):
        check_checkpoint(sharded)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("latest", "no latest, which names global_step5"),
        ("global_step5/mp_rank_00_model_states.pt", "no weights in global_step5"),
        ("global_step5/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "optimizer state of 1 of 2 processes"),
    ],
)
def test_missing_part_of_deepspeed_is_named(zero, name, what):
    (zero / name).unlink()
    with pytest.raises(CheckpointError, match=what):
        check_checkpoint(zero)


def test_part_of_deepspeed_that_was_cut_short_is_named(zero):
    cut_short(zero / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt", by=100)
    with pytest.raises(CheckpointError, match=r"global_step5/zero_pp_rank_0_mp_rank_00_optim_states\.pt is damaged"):
        check_checkpoint(zero)


def test_missing_file_of_weights_in_several_is_named(checkpoint):
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (checkpoint / "model.safetensors").rename(checkpoint / shards[0])
    index = {"weight_map": {"weight": shards[0], "bias": shards[0], "more": shards[1]}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=shards[1]):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b"5",
        b"null",
        b"\xff",
        b'{"global_step": 5',
        b'{"global_step": "five"}',
        b'{"global_step": null}',
    ],
)
def test_damaged_trainer_state_is_named(checkpoint, content):
    (checkpoint / "trainer_state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json is damaged"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        [],
        5,
        None,
        {"a": 5},
        {"a": {}},
        {"a": {"data_offsets": 5}},
        {"a": {"data_offsets": [0]}},
        {"a": {"data_offsets": [0, "x"]}},
    ],
)
def test_senseless_header_of_the_weights_is_damage(checkpoint, content):
    (checkpoint / "model.safetensors").write_bytes(safetensors_with_header(content))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"weight_map": {"a": "model.sa',
        b'{"weight_map": 5}',
        b'{"weight_map": {"a": 5}}',
        b'{"weight_map": {"a": null, "b": "model.safetensors"}}',
        b'{"weight_map": {"a": ["model.safetensors"]}}',
    ],
)
def test_damaged_index_of_the_weights_is_named(checkpoint, content):
    (checkpoint / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is damaged"):
        check_checkpoint(checkpoint)


def test_copy_of_an_rng_state_is_none_of_a_rank(checkpoint):
    for name in ("rng_state_0 copy.pth", "rng_state_old.pth"):
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / name)
    assert check_checkpoint(checkpoint) == 5


def test_copy_of_an_rng_state_does_not_stand_for_it(checkpoint):
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0 copy.pth")
    with pytest.raises(CheckpointError, match="no RNG state"):
        check_checkpoint(checkpoint)


def test_all_that_is_wrong_is_said_at_once(checkpoint):
    (checkpoint / "optimizer.pt").unlink()
    cut_short(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="safetensors is damaged; no optimizer state"):
        check_checkpoint(checkpoint)


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path / 'checkpoint-7'}"):
        check_checkpoint(tmp_path / "checkpoint-7")


# --- found ---


def test_checkpoints_are_found_by_step_and_not_by_name(tmp_path):
    for step in (1000, 200, 30):
        make_checkpoint(tmp_path, step)
    assert list(saved_checkpoints(tmp_path)) == [30, 200, 1000]


def test_kept_fork_point_stands_in_for_a_checkpoint_that_was_rotated_away(tmp_path):
    kept = make_checkpoint(tmp_path / FORK_POINTS, 10)
    newest = make_checkpoint(tmp_path, 20)
    assert saved_checkpoints(tmp_path) == {10: kept, 20: newest}


def test_kept_copy_comes_before_the_checkpoint_that_trainer_may_rotate_away(tmp_path):
    kept = make_checkpoint(tmp_path / FORK_POINTS, 10)
    make_checkpoint(tmp_path, 10)
    assert saved_checkpoints(tmp_path) == {10: kept}


def test_other_folders_and_files_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-", "checkpoint-5-old", ".checkpoint-5.77", "checkpoint-best"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    assert saved_checkpoints(tmp_path) == {}


def test_run_that_is_not_there_has_no_checkpoints(tmp_path):
    assert saved_checkpoints(tmp_path / "nowhere") == {}


def test_newest_whole_checkpoint_passes_over_damaged_ones(tmp_path):
    whole, damaged = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    cut_short(damaged / "optimizer.pt", by=30)
    assert newest_whole(tmp_path)[0] == whole


def test_what_was_passed_over_is_said(tmp_path):
    make_checkpoint(tmp_path, 10)
    for step in (20, 30):
        (make_checkpoint(tmp_path, step) / "trainer_state.json").write_text("{")
    assert [text.partition(" cannot")[0] for text in newest_whole(tmp_path)[1]] == [
        str(tmp_path / "checkpoint-30"),
        str(tmp_path / "checkpoint-20"),
    ]


def test_run_without_a_whole_checkpoint_has_no_newest(tmp_path):
    (make_checkpoint(tmp_path, 10) / "scheduler.pt").unlink()
    newest, damage = newest_whole(tmp_path)
    assert (newest, len(damage)) == (None, 1)


def test_whole_fork_point_stands_in_for_a_damaged_checkpoint_of_its_step(tmp_path):
    """A kill while Trainer deletes a checkpoint leaves half of it beside the copy that was kept for good."""
    kept, half = make_checkpoint(tmp_path / FORK_POINTS, 10), make_checkpoint(tmp_path, 10)
    (half / "optimizer.pt").unlink()
    assert newest_whole(tmp_path)[0] == kept
