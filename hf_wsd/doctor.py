"""`hf-wsd doctor`: what is exact on this machine, in bits, and what updates, saves and disk cost."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import typer

from hf_wsd.demo import recipes_folder
from hf_wsd.errors import RunError
from hf_wsd.lengths import show_tokens
from hf_wsd.planning import read_preview
from hf_wsd.running import read_launcher
from hf_wsd.show import columns

Words = list[str] | None
_TINY = (  # with dropout: an evaluation would change training
    *("--preset", "0.5M", "--config_overrides", "resid_pdrop=0.1,embd_pdrop=0.1,attn_pdrop=0.1"),
    *("--block_size", "64", "--per_device_train_batch_size", "4", "--max_eval_blocks", "16"),
)
_JOB = "SCRIPT.py (or -m MODULE) with its arguments; or more flags for the default job, recipes/pretrain.py in tiny."


def doctor(
    job: Annotated[Words, typer.Argument(metavar="[-- SCRIPT.py ... | -- FLAGS]", help=_JOB)] = None,
    launch: Annotated[
        str | None, typer.Option(help="What starts the processes: 'torchrun --nproc_per_node 8'.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Work in a new folder in this one: where runs will be.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the new folder, with runs and logs.")] = False,
    evaluation: Annotated[bool, typer.Option(help="Whether the script has an evaluation set.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds that one run may take.")] = 900,
    budgets: Annotated[Words, typer.Option(help="Models that you plan, for their disk and time: 1B 2B 4B.")] = None,
    decay_fraction: Annotated[float | None, typer.Option(help="Of the plan; default 0.1.")] = None,
    tokens_per_step: Annotated[str | None, typer.Option(help="Of the plan: 0.5M; default: the job's.")] = None,
    model_size: Annotated[str | None, typer.Option(help="Parameters of the plan: 124M; default: the job's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Train 20 steps again and again (killed, resumed, decayed) and say what is exact here, in bits, and how fast.

    The exit code is 0 if all is exact, else 1.
    """
    script = read_job(job or ())
    if launch is not None:
        read_launcher(launch)
    plan = {"decay_fraction": decay_fraction, "tokens_per_step": tokens_per_step, "parameters": model_size}
    if budgets:  # what cannot be read is refused now, not after the runs
        placeholder = {name: "1" for name in ("tokens_per_step", "parameters") if plan[name] is None}
        read_preview("wsd", budgets, of=None, warmup="0", **plan | placeholder)

    from hf_wsd.checkup import check_all, examine, plan_costs
    from hf_wsd.trials import Job

    with _new_folder(folder, keep=keep) as new:
        checks = []
        of_user = Job(folder=new, script=script, launcher=launch, evaluates=evaluation, timeout=timeout)
        for check in check_all(of_user, _talk):
            checks.append(check)
            _talk(f"  {check}" + f"\n{check.why}".replace("\n", "\n  ") * bool(check.why))
        found = examine(new)
        if budgets and "job" in found:
            found["plan"] = plan_costs(found, budgets, **plan)
    exact = all(check.result == "exact" for check in checks)
    found = {"exact": exact, "checks": [check.to_dict() for check in checks]} | found
    print(json.dumps(found, indent=1) if as_json else doctor_text(found))
    if not exact:
        raise typer.Exit(1)


def read_job(words: Sequence[str]) -> tuple[str, ...]:
    """The script and its arguments; flags alone are for the default job. `python -m hf_wsd` before a script is dropped.

    Raises:
        RunError: it begins with something else, such as a launcher.
    """
    words = list(words)
    if not words or (words[0].startswith("-") and words[0] != "-m"):
        return (str(recipes_folder() / "pretrain.py"), *_TINY, *words)
    if Path(words[0]).name.startswith("python"):
        del words[0]
    if words[:2] == ["-m", "hf_wsd"]:
        del words[:2]
    if not words or (words[0] != "-m" and not (words[0].endswith(".py") and Path(words[0]).is_file())):
        raise RunError(
            f"the job after -- begins with a SCRIPT.py that is there, or -m MODULE, not with {' '.join(words[:1])!r}: "
            "what starts the processes goes into --launch, and the flags of `python -m hf_wsd` are the doctor's own"
        )
    return tuple(words)


@contextmanager
def _new_folder(inside: Path | None, *, keep: bool) -> Iterator[Path]:
    if inside is not None and not inside.is_dir():
        raise RunError(f"--folder {inside}: there is no such folder")
    new = Path(tempfile.mkdtemp(prefix="hf-wsd-doctor-", dir=inside)).resolve()
    try:
        yield new
    finally:
        if keep:
            _talk(f"kept: {new}")
        else:
            rmtree(new, ignore_errors=True)


def _talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def doctor_text(found: Mapping[str, Any]) -> str:
    """What was found out, for people."""
    checks = [("compared with a straight run of 20 steps", "result")]
    checks += [(check["claim"], check["text"]) for check in found["checks"]]
    parts = ["\n".join(_surroundings(found)), columns(checks)]
    if "job" in found:
        parts += [columns(_times(found)), "\n".join(_costs(found))]
    return "\n\n".join(parts)


def _surroundings(found: Mapping[str, Any]) -> Iterator[str]:
    folder, machine = found["folder"], found["machine"]
    if job := found.get("job"):
        yield ", ".join(f"{name} {version}" for name, version in job["versions"].items())
        several = f"{job['world_size']} process{'es' * (job['world_size'] > 1)}"
        engine = "" if job["engine"] == "NO" else f" ({job['engine']})"
        compiled = ", compiled" * bool(job.get("torch_compile"))
        yield f"{several} on {job['device']}{engine}, {job['precision']}{compiled}, threads: {job['threads']}"
    compiler = " and ".join(filter(None, [machine["compiler"], "triton" * machine["triton"]])) or "no compiler"
    threads = machine["omp_num_threads"] or "not set"
    yield f"{machine['cpus']} CPUs, OMP_NUM_THREADS {threads}, for torch.compile: {compiler} (not tried)"
    links = "hard links" if folder["hard_links"] else "NO hard links (kept checkpoints are copies: twice the disk)"
    locks = "locks" if folder["locks"] else "NO file locks (nothing stops a second process in a run's folder)"
    speed = f"{show_bytes(folder['written_bytes_per_second'])}/s written and synced"
    yield f"{folder['path']}: {links}, {locks}, {speed}, {show_bytes(folder['free_bytes'])} free"


def _times(found: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    yield "time", "median", "least", "most", "measured"
    for name, one in found["times"].items():
        yield name, *(show_seconds(one[key]) for key in ("median", "least", "most")), str(one["number"])


def _costs(found: Mapping[str, Any]) -> Iterator[str]:
    checkpoint, plan = found["checkpoint"], found.get("plan")
    yield (
        f"checkpoint: {show_bytes(checkpoint['bytes'])}; weights and optimizer take {checkpoint['per_parameter']:.4g} "
        f"bytes for each of {show_tokens(found['job']['parameters'])} parameters"
    )
    if plan:
        room = "fits" if plan["fits"] else f"does NOT fit into {show_bytes(found['folder']['free_bytes'])}"
        yield (
            f"plan: {plan['checkpoints']} kept checkpoints of {show_tokens(plan['parameters'])} parameters, "
            f"{show_bytes(plan['checkpoint_bytes'])} each, {show_bytes(plan['bytes'])} in all: {room}; "
            f"{show_seconds(plan['save_seconds'])} to write one"
        )
        if plan["seconds"] is not None:
            yield f"plan: {plan['updates']:,} updates like the job's, {show_seconds(plan['seconds'])} of training"


def show_bytes(number: float) -> str:
    """A number of bytes for people: 1.49 GB."""
    unit, size = next(((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if number >= s), ("KB", 1e3))
    return f"{number / size:.3g} {unit}"


def show_seconds(seconds: float) -> str:
    """A time for people: 12.3 ms, 2.5 s, 3.1 h."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 3600:.3g} h"
