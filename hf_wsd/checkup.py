"""What `hf-wsd doctor` finds out: what is exact, how long things take, what the folder can do."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from hf_wsd.bits import difference
from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.errors import CheckpointError, WSDError
from hf_wsd.history import read_history
from hf_wsd.lineage import Lineage
from hf_wsd.planning import read_preview
from hf_wsd.trials import STEPS, Job, read_times

STRAIGHT = "a straight run"
_NOT_IN_CHECKPOINT = (
    "something that training depends on is not in its checkpoints: the order of the data (a stream that ends or has a "
    "shuffle buffer, --ignore_data_skip), or random numbers that the script draws by itself"
)
TRIALS: dict[
    str, tuple[Callable[[Job], Path], str]
] = {  # the claim: the run that must end in the same bits, and if not
    "the same command again": (
        lambda job: job.run("again"),
        "the job itself is not deterministic, so nothing can be exact: seed whatever it draws (data, order, weights); "
        "on GPUs --full_determinism",
    ),
    "without evaluations": (
        lambda job: job.run("unevaluated", evaluates=False),
        "evaluations change training: a callback or a metric that draws random numbers, or changes the model",
    ),
    "kill -9, resumed": (lambda job: job.interrupted("killed", signal.SIGKILL), _NOT_IN_CHECKPOINT),
    "SIGTERM: saved, exited, resumed": (lambda job: job.interrupted("ended", signal.SIGTERM), _NOT_IN_CHECKPOINT),
    "trunk and branch of hf-wsd decay": (lambda job: job.branch(), _NOT_IN_CHECKPOINT),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What came of one claim: "exact", "differs", "failed" or "not tried".

    Args:
        max_difference: of two weights at the end.
        from_step: the first update whose loss differs; None where the logged losses are the same.
        why: of a failure, or what may be behind a difference.
    """

    claim: str
    result: str
    max_difference: float | None = None
    from_step: int | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"text": str(self)}

    def __str__(self) -> str:
        if self.result != "differs":
            return self.result
        begin = f", losses from step {self.from_step} on" if self.from_step else ""
        return f"differs (max |difference| {self.max_difference:.2g}{begin})"


def check_all(job: Job, say: Callable[[str], None] = print) -> Iterator[Check]:
    """The claims, one by one as their runs end; where the straight run fails, nothing else is tried."""
    claims = [claim for claim in TRIALS if job.evaluates or claim != "without evaluations"]
    say(f"{STRAIGHT} ...")
    try:
        straight = job.run("straight")
        _last(straight)
    except WSDError as error:
        yield Check(claim=STRAIGHT, result="failed", why=str(error))
        yield from (Check(claim=claim, result="not tried") for claim in claims)
        return
    for claim in claims:
        say(f"{claim} ...")
        yield check(claim, job, straight)


def check(claim: str, job: Job, straight: Path) -> Check:
    """What comes of a claim of TRIALS: its runs must end in the bits of the straight run."""
    trial, reason = TRIALS[claim]
    try:
        run = trial(job)
        apart = difference(_last(straight), _last(run))
    except WSDError as error:
        return Check(claim=claim, result="failed", why=str(error))
    if apart is None:
        return Check(claim=claim, result="exact")
    begin = _first_difference(straight, run)
    return Check(claim=claim, result="differs", max_difference=apart, from_step=begin, why=reason)


def _last(run: Path) -> Path:
    found = saved_checkpoints(run)
    if STEPS not in found:
        raise CheckpointError(
            f"{run.name} has no checkpoint-{STEPS}, only {', '.join(map(str, found)) or 'none'}: the script has to "
            "take --output_dir, --max_steps and --save_steps"
        )
    return found[STEPS]


def _first_difference(one: Path, other: Path) -> int | None:
    a, b = ({row["step"]: row["loss"] for row in read_history(run) if "loss" in row} for run in (one, other))
    return next((step for step in sorted(a.keys() & b.keys()) if a[step] != b[step]), None)


# --- times ---


def measured_times(folder: Path) -> dict[str, list[float]]:
    """Seconds of what the runs in a folder have done: start-up, first update, update, evaluation, save.

    An update counts where nothing came between it and the one before; logging is part of it.
    """
    names = {
        ("start", "begin"): "start-up",
        ("begin", "step"): "first update",
        ("step", "step"): "update",
        ("step", "evaluation"): "evaluation",
        ("step", "save"): "save",
        ("evaluation", "save"): "save",
    }
    times: dict[str, list[float]] = {name: [] for name in names.values()}
    for file in sorted(folder.rglob("*.times")):
        for before, row in pairwise(read_times(file.with_suffix(""))):
            if name := names.get((before["event"], row["event"])):
                times[name].append(row["time"] - before["time"])
    return {name: seconds for name, seconds in times.items() if seconds}


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, smallest, largest and number.

    >>> summary([1.0, 2.0, 6.0])
    {'median': 2.0, 'least': 1.0, 'most': 6.0, 'number': 3}
    """
    return {"median": median(seconds), "least": min(seconds), "most": max(seconds), "number": len(seconds)}


# --- the job, its checkpoints, the folder, the plan ---


def examine(folder: Path) -> dict[str, Any]:
    """What the runs in a folder, the folder and the machine tell; of the job nothing where its straight run failed."""
    found: dict[str, Any] = {"machine": machine_facts(), "folder": {"path": str(folder)} | folder_facts(folder)}
    straight = folder / "straight"
    if STEPS not in saved_checkpoints(straight):
        return found
    job = job_facts(straight)
    times = {name: summary(seconds) for name, seconds in measured_times(folder).items()}
    return found | {"job": job, "times": times, "checkpoint": checkpoint_size(straight, job["parameters"])}


def job_facts(straight: Path) -> dict[str, Any]:
    """What the job was, as its own processes tell: engine, versions, processes, device, precision, parameters."""
    record = Lineage.read(_last(straight))
    begin = next(row for row in read_times(straight) if row["event"] == "begin")
    facts = {"engine": begin["engine"], "versions": dict(record.versions)}
    return facts | dict(record.setup) | {"parameters": record.parameters, "tokens_per_step": record.tokens_per_step}


def checkpoint_size(straight: Path, parameters: int) -> dict[str, float]:
    """Bytes of a checkpoint, and how many its weights and optimizer state take for each parameter."""
    last = _last(straight)
    names = ("*.safetensors", "optimizer*", "pytorch_model*", "global_step*")
    state = {file for name in names for top in last.glob(name) for file in (top, *top.rglob("*"))}
    sizes = {file: file.stat().st_size for file in last.rglob("*") if file.is_file()}
    of_state = sum(size for file, size in sizes.items() if file in state)
    return {"bytes": sum(sizes.values()), "per_parameter": of_state / parameters}


def plan_costs(found: Mapping[str, Any], budgets: list[str], **plan: Any) -> dict[str, Any]:
    """Disk and time of planned budgets, as measured here; the time only where the job is what is planned.

    Raises:
        WSDError: as in `read_preview`.
    """
    job, same_job = found["job"], plan["parameters"] is None and plan["tokens_per_step"] is None
    measured = {name: str(job[name]) for name in ("parameters", "tokens_per_step") if plan[name] is None and job[name]}
    preview = read_preview("wsd", budgets, of=None, warmup="0", **plan | measured)
    parameters = preview.parameters or job["parameters"]
    size, kept = found["checkpoint"]["per_parameter"] * parameters, len(list(preview.kept()))
    return {
        "parameters": parameters,
        "checkpoints": kept,
        "checkpoint_bytes": size,
        "bytes": size * kept,
        "fits": size * kept <= found["folder"]["free_bytes"],
        "save_seconds": size / found["folder"]["written_bytes_per_second"],
        "updates": preview.steps,
        "seconds": preview.steps * found["times"]["update"]["median"] if same_job else None,
    }


def folder_facts(folder: Path) -> dict[str, Any]:
    """What the file system of a folder can do, tried out: hard links, locks, free bytes, bytes a second written."""
    file, free = folder / "tried", shutil.disk_usage(folder).free
    megabytes = max(1, min(64, free // 2**24))
    with file.open("wb") as stream:
        chunks, begin = [os.urandom(2**20)] * megabytes, time.perf_counter()
        stream.writelines(chunks)
        stream.flush()
        os.fsync(stream.fileno())
        speed = megabytes * 2**20 / (time.perf_counter() - begin)
    facts = {"hard_links": _links(file), "locks": _locks(file)}
    file.unlink()
    return facts | {"free_bytes": free, "written_bytes_per_second": speed}


def _links(file: Path) -> bool:
    link = file.with_name("link")
    try:
        os.link(file, link)
    except OSError:
        return False
    linked = os.path.samefile(file, link)
    link.unlink()
    return linked


def _locks(file: Path) -> bool:
    """Whether a lock that is held is refused to others."""
    with file.open("w") as one, file.open("w") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def machine_facts() -> dict[str, Any]:
    """This machine: CPUs that this process may use, threads, and what torch.compile would need."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return {
        "cpus": cpus,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "compiler": compiler,
        "triton": find_spec("triton") is not None,
    }
