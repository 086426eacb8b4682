"""What stays on disk: fork points, decayed models and those of --keep-every, against everything that deletes."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_pruning import save_whole
from test_report import plan_branch, text_of
from trainer_runs import FAMILY, FLAGS, SCRIPT, command, same_weights, train_here

from hf_wsd.checkpoint import check_checkpoint, saved_checkpoints
from hf_wsd.disk import used_bytes
from hf_wsd.errors import WSDError
from hf_wsd.family import read_run
from hf_wsd.forking import fork, prepare
from hf_wsd.plan import Decay
from hf_wsd.settings import Settings
from hf_wsd.tree import disk_dict, render_tree

EVERY_4 = ("--save_strategy", "steps", "--save_steps", 4)
KEPT = {6: "kept", 12: "kept", 15: "fork", 18: "kept", 24: "kept", 30: "fork"}


def kinds(run: Path) -> dict[int, str]:
    return {step: record.kind for step, record in read_run(run).records.items() if record.kind != "periodic"}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """Saves every 4th step and leaves the newest; keeps every 6th (384 tokens) and the fork points 15 and 30."""
    run = tmp_path_factory.mktemp("family") / "run"
    limit = ("--num_train_epochs", 9, *EVERY_4, "--save_total_limit", 1)
    return train_here(run, *limit, launch=(*FAMILY, "--keep-every", "384tokens"))


# --- --keep-every ---


def test_every_so_many_steps_a_checkpoint_is_kept_whatever_save_total_limit_says(trunk):
    assert kinds(trunk) == KEPT
    assert [path.name for path in trunk.glob("checkpoint-*")] == ["checkpoint-30"]
    assert [check_checkpoint(path) for path in saved_checkpoints(trunk).values()] == list(KEPT)


def test_keeping_checkpoints_does_not_change_training(trunk, tmp_path):
    bare = train_here(tmp_path / "bare", "--num_train_epochs", 9, launch=FAMILY)
    assert same_weights(bare / "checkpoint-30", trunk / "checkpoint-30")


@pytest.mark.slow
def test_branch_leaves_out_what_its_trunk_keeps(trunk, tmp_path, monkeypatch):
    branch = fork(trunk, Decay(fork=15, end=20))
    prepare(branch)
    monkeypatch.setenv("HF_WSD_BRANCH", str(branch.folder))
    monkeypatch.setenv("HF_WSD_KEEP_EVERY", "2")
    train_here(branch.folder, "--max_steps", 20, "--resume_from_checkpoint", branch.checkpoint)
    assert kinds(branch.folder) == {20: "post-decay"}


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "0", "0M", "many", "nan", "inf", []])
def test_value_that_is_no_length_is_refused(value):
    with pytest.raises(WSDError, match="keep_every"):
        Settings.make(keep_every=value)


def test_length_of_less_than_a_step_is_refused_before_the_first(tmp_path):
    with pytest.raises(SystemExit, match="1tokens is less than half a step of 64 tokens"):
        train_here(tmp_path / "run", "--max_steps", 20, launch=("--keep-every", "1tokens"))
    assert not (tmp_path / "run" / "wsd.jsonl").exists()


# --- against Trainer's own deletions ---


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("greater_is_better", [True, False])  # a loss: the best is the first one, or the last
def test_all_that_is_kept_survives_the_search_for_the_best_model(tmp_path, limit, greater_is_better):
    best = ("--load_best_model_at_end", "True", "--greater_is_better", greater_is_better, "--save_total_limit", limit)
    best = (*best, *EVERY_4, "--eval_steps", 4)
    run = train_here(tmp_path / "run", *best, "--num_train_epochs", 9, launch=(*FAMILY, "--keep-every", 6))
    decay = ("--max_steps", 40, "--resume_from_checkpoint", saved_checkpoints(run)[30])
    branch = train_here(tmp_path / "branch", *best, *decay, "--lr_scheduler_kwargs", '{"num_decay_steps": 10}')
    assert (kinds(run), kinds(branch)) == (KEPT, {40: "post-decay"})
    own = [*saved_checkpoints(run).items(), *saved_checkpoints(branch).items()]
    assert {step for step, path in own if check_checkpoint(path) == step} >= {*KEPT, 40}


# --- against pushes to the hub ---


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push needs; the server's `pushed` has the paths and contents of all commits."""

    def do_GET(self) -> None:
        self._answer({"id": "user/run", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://{self.headers['Host']}/user/run"
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._answer({"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        if "/commit/" in self.path:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    self.server.pushed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self._answer({"url": url, "commitOid": "0" * 40, "commitUrl": f"{url}/commit/{'0' * 40}", "hookOutput": ""})

    def _answer(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Not to stderr."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.pushed = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "pushed"), [("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-15")]
)
def test_pushes_to_the_hub_leave_kept_checkpoints_where_they_are(hub, tmp_path, strategy, pushed):
    run = tmp_path / "run"
    push = ("--push_to_hub", "True", "--hub_model_id", "user/run", "--hub_strategy", strategy)
    flags = (*FLAGS, *EVERY_4, "--save_total_limit", 1, "--max_steps", 15, *push, "--hub_always_push", "True")
    argv = ["-m", "hf_wsd", "--trunk", "--budgets", 20, "--decay-fraction", 0.25, "--keep-every", 6]
    argv += ["--allow", "push_every_save", SCRIPT]
    here = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command([*argv, "--output_dir", run, *flags], **here, HF_HUB_OFFLINE="0", HF_TOKEN="hf_none")
    assert kinds(run) == {6: "kept", 12: "kept", 15: "fork"}
    assert {f"{pushed}/{name}" for name in ("optimizer.pt", "wsd.json")} <= {*hub.pushed}
    assert [path for path in hub.pushed if path.startswith("_")] == []


# --- hf-wsd tree ---


@pytest.fixture
def family(tmp_path):
    """A trunk of 80 steps with every reason for which a checkpoint is there."""
    run = tmp_path / "small"
    settings = {"keep_every": 20, "budgets": ["40", "42"], "num_decay_steps": 10}
    for step, kind in {20: "kept", 30: "fork", 32: "fork", 60: "periodic", 70: "periodic", 80: "end"}.items():
        save_whole(run, step, kind=kind, settings=settings, last_step=80, keep=kind != "periodic" and step != 32)
    branch, record = plan_branch(run, 30, 40, last_step=40)
    save_whole(branch, 40, kind="post-decay", schedule=record.schedule, last_step=40, keep=False)
    (branch / "checkpoint-40" / "optimizer.pt").unlink()
    for fork_point, end in ((50, 55), (60, 80)):
        plan_branch(run, fork_point, end, last_step=end)
    return run


def test_tree_says_what_is_kept_and_why_and_what_hangs_on_it(family):
    lines = [line.strip("│├└─ ") for line in text_of(render_tree(read_run(family))).splitlines()[2:]]
    assert [re.sub(r", [\d.]+ k?B$", "", line) for line in lines[:-1]] == [
        "step 20, 1.28K tokens: kept every 20",
        "step 30, 1.92K tokens: fork point of budget 40",
        "30-1-sqrt-10: finished, step 40, 2.56K tokens, weights alone",
        "step 32, 2.048K tokens: fork point of budget 42, no kept copy",
        "step 50, 3.2K tokens: checkpoint is gone",
        "50-1-sqrt-5: planned, ends at step 55",
        "step 60, 3.84K tokens: periodic",
        "60-1-sqrt-20: planned, ends at step 80",
        "step 80, 5.12K tokens: end of the run",
        "periodic, until newer ones come: step 70",
    ]


def test_tree_in_json_has_the_sizes_and_branches_of_all_checkpoints(family):
    disk = disk_dict(read_run(family))
    rows = {(row["run"], row["step"]): row for row in disk["checkpoints"]}
    assert (rows[".", 30]["kind"], rows[".", 30]["branches"]) == ("fork", ["30-1-sqrt-10"])
    assert rows[".", 30]["folders"] == ["checkpoint-30", "_fork-points/checkpoint-30"]
    assert rows["_branches/30-1-sqrt-10", 40]["why"].endswith("weights alone")
    assert disk["disk_bytes"] == used_bytes(family)


def test_disk_is_counted_once_for_all_names_of_a_file(trunk):
    disk = disk_dict(read_run(trunk))
    sizes = {row["step"]: row["bytes"] for row in disk["checkpoints"]}
    assert sizes[30] == sum(file.stat().st_size for file in (trunk / "checkpoint-30").iterdir())
    assert sum(sizes.values()) < disk["disk_bytes"] < sum(sizes.values()) + sizes[30]
