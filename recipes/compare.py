"""Compare ways to get a model at every budget: the same data, model, budgets and seeds, peak lrs tuned alike.

    python recipes/compare.py --output_dir runs/compare --steps 4000 --lrs 5e-3 1e-2 2e-2 --seeds 1 2 3 \
        --preset 0.25M --block_size 128 --warmup_steps 200 --max_eval_blocks 192 --jobs 2

Every arm is what a user would type: recipes/pretrain.py, once for each budget with cosine and linear to zero, once in
all with WSD (trunk and decays in one process), WSD-S and cyclic cosine. The first seed tries every peak lr, and further
ones of the same ratio until the best lies between two others. The other seeds try its best, and where their mean falls
behind what the first seed has with another, that one too. The mean over seeds decides: for each budget of separate
runs, over all budgets of one trunk or line. Flags that are not named here go to recipes/pretrain.py.

Give the warm-up what the highest peak lr needs, or the grid has nothing to choose from: a cosine run of 2,000 steps
(0.25M parameters, lr 1e-2) ended at 4.555 after a warm-up of 50 steps, at 4.361 after one of 200.

Repeating the command goes on with it; what is done is in OUTPUT_DIR/compare.jsonl, the tables in compare.md. Wall-clock
(start-up, evaluations and checkpoints included) means something with --jobs 1 on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path

from comparison import ARMS, BASELINE, Comparison, Launch
from comparison_tables import describe
from transformers import HfArgumentParser

from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.errors import RunError, SettingsError, WSDError, unknown
from hf_wsd.family import read_run
from hf_wsd.history import write_atomically
from hf_wsd.lock import locked
from hf_wsd.plan import Plan
from hf_wsd.report import make_report
from hf_wsd.running import read_launcher

EVALUATIONS = 100  # at most, of one run: each budget has to fall on one
RESULTS = "compare.jsonl"


@dataclass
class CompareArguments:
    """What to compare."""

    output_dir: str = field(metadata={"help": "Folder of all runs and of the results."})
    steps: int = field(metadata={"help": "Updates of the longest model."})
    budgets: list[str] = field(
        default_factory=lambda: ["10%", "30%", "50%", "70%", "100%"],
        metadata={"help": "Lengths of the models: parts of --steps, or steps."},
    )
    lrs: list[float] = field(default_factory=lambda: [5e-3, 1e-2, 2e-2], metadata={"help": "Peak lrs to try first."})
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Seeds; the first tries all lrs."})
    arms: list[str] = field(default_factory=lambda: [*ARMS], metadata={"help": f"Of: {', '.join(ARMS)}."})
    jobs: int = field(default=1, metadata={"help": "Runs at the same time, which share the cores; 1 for wall-clock."})
    launcher: str | None = field(default=None, metadata={"help": "What starts the processes: 'accelerate launch'."})
    dry_run: bool = field(default=False, metadata={"help": "Print the commands of the first seed alone."})


@dataclass(frozen=True, kw_only=True)
class Task:
    """One command that is to be run: an arm's, at one peak lr, with one seed."""

    arm: str
    lr: float
    seed: int
    budgets: tuple[int, ...]
    folder: Path
    command: tuple[str, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """What no other task has."""
        return self.arm, self.lr, self.seed, self.budgets


def tasks(args: CompareArguments, arm: str, lr: float, seed: int, rest: list[str], *, only: int = 0) -> Iterator[Task]:
    """The commands of an arm for one peak lr and seed; `only` the model of one budget where runs are separate."""
    ends = tuple(decay.end for decay in Plan.of_budgets(args.budgets, of=str(args.steps)).decays)
    every = gcd(*ends)
    if every * EVALUATIONS < ends[-1]:
        raise SettingsError(
            f"budgets of {', '.join(map(str, ends))} steps have only {every} as a common divisor: an evaluation every "
            f"{every} steps would be needed. Choose budgets that are multiples of {ends[-1] // EVALUATIONS} or more"
        )
    kind = ARMS[arm].kind
    groups = [(end,) for end in ends if only in (0, end)] if kind == "separate" else [ends]
    for budgets in groups:
        folder = Path(args.output_dir) / arm.replace(" ", "-").replace(",", "") / f"lr-{lr:g}" / f"seed-{seed}"
        folder = folder / str(budgets[0]) if kind == "separate" else folder
        yield Task(
            arm=arm,
            lr=lr,
            seed=seed,
            budgets=budgets,
            folder=folder,
            command=(
                *(read_launcher(args.launcher) if args.launcher else (sys.executable,)),
                *(str(Path(__file__).with_name("pretrain.py")), "--output_dir", str(folder), *ARMS[arm].flags),
                *("--budgets", *map(str, budgets[-1:] if kind == "constant" else budgets)),
                *("--learning_rate", f"{lr:g}", "--seed", str(seed), "--eval_steps", str(every)),
                *("--save_steps", str(ends[-1]), "--save_total_limit", "1", "--disable_tqdm", "True", *rest),
            ),
        )


def run(task: Task, *, jobs: int) -> Launch:
    """Run a command, beside `jobs - 1` others, and read what it gave; one of several, or a resumed one, has no time.

    Raises:
        RunError: it failed.
    """
    resumed = task.folder.exists()
    task.folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_WSD_")}
    if jobs > 1:  # on two cores, a run of two threads beside another busy process made 0.5 it/s instead of 16
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    print(f"{task.folder}: {'goes on' if resumed else 'training'}", file=sys.stderr, flush=True)
    with locked(task.folder) as lock, (task.folder / "run.log").open("a", encoding="utf-8") as log:
        start = time.monotonic()
        status = subprocess.run(
            task.command, env=environment, pass_fds=(lock,), stdout=log, stderr=log, check=False
        ).returncode
        seconds = time.monotonic() - start if jobs == 1 and not resumed else None
    if status:
        raise RunError(f"{task.folder} failed (exit {status}), see run.log there; repeat the command to go on")
    return read_launch(task, seconds)


def read_launch(task: Task, seconds: float | None) -> Launch:
    """What a finished run left: losses at the budgets, from its records or (stock schedules) Trainer's state."""
    evaluations, forks = logged_losses(task.folder), dict[int, float]()
    losses, updates, tokens_per_step = dict(evaluations), task.budgets[-1], None
    if ARMS[task.arm].kind in ("family", "line"):
        family = read_run(task.folder)
        report = make_report(family)
        losses = {row.end: row.loss for row in report.rows if row.loss is not None}
        forks = {row.end: row.trunk_loss_at_fork for row in report.rows if row.trunk_loss_at_fork is not None}
        updates, tokens_per_step = family.family_updates, report.tokens_per_step
    if missing := [budget for budget in task.budgets if budget not in losses]:
        raise RunError(f"{task.folder} has no evaluation at step {', '.join(map(str, missing))}: delete it, repeat")
    return Launch(
        arm=task.arm,
        lr=task.lr,
        seed=task.seed,
        budgets=task.budgets,
        losses={budget: losses[budget] for budget in task.budgets},
        fork_losses=forks,
        evaluations=evaluations,
        updates=updates,
        tokens_per_step=tokens_per_step,
        seconds=seconds,
    )


def logged_losses(folder: Path) -> dict[int, float]:
    """Every evaluation of a run by step, as Trainer's state in its last checkpoint has them."""
    last = saved_checkpoints(folder)
    if not last:
        raise RunError(f"{folder} has no checkpoint: delete it, and repeat the command")
    state = json.loads((last[max(last)] / "trainer_state.json").read_text(encoding="utf-8"))
    return {row["step"]: row["eval_loss"] for row in state["log_history"] if "eval_loss" in row}


def run_missing(args: CompareArguments, wanted: list[Task], settings: dict[str, object]) -> Comparison:
    """Run what the results do not have yet; each launch is on disk when it has ended."""
    file = Path(args.output_dir) / RESULTS
    results = Comparison.read(file) if file.exists() else Comparison(settings=settings)
    if results.settings != settings:
        raise SettingsError(f"{file} was made with {results.settings}, not {settings}: give another --output_dir")
    done = {(one.arm, one.lr, one.seed, one.budgets) for one in results.launches}
    with ThreadPoolExecutor(args.jobs) as pool:
        started = [pool.submit(run, task, jobs=args.jobs) for task in wanted if task.key not in done]
        try:
            for ended in as_completed(started):
                results = replace(results, launches=(*results.launches, ended.result()))
                results.write(file)
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def grid(args: CompareArguments, rest: list[str]) -> list[Task]:
    """Every peak lr that is asked for, with the first seed."""
    return [task for arm in args.arms for lr in args.lrs for task in tasks(args, arm, lr, args.seeds[0], rest)]


def tune(args: CompareArguments, rest: list[str], settings: dict[str, object]) -> Comparison:
    """Try the grid, and with the first seed the next beyond it until the best peak lr lies between two others."""
    wanted = grid(args, rest)
    while wanted:
        tuned = run_missing(args, wanted, settings)
        wanted = [
            task
            for arm in args.arms
            for budget in tuned.tuned_at(arm)
            if (lr := tuned.beyond(arm, budget)) is not None
            for task in tasks(args, arm, lr, args.seeds[0], rest, only=budget)
        ]
    return tuned


def repeat(args: CompareArguments, seeds: list[int], rest: list[str], results: Comparison) -> Comparison:
    """Try the best peak lrs with further seeds, until no other has a lower loss on the seeds that it has."""
    before = 0
    while len(results.launches) > before:
        before = len(results.launches)
        wanted = [
            task
            for seed in seeds
            for arm in args.arms
            for budget in results.tuned_at(arm)
            for task in tasks(args, arm, results.hopeful(arm, budget), seed, rest, only=budget)
        ]
        results = run_missing(args, wanted, dict(results.settings))
    return results


def main() -> None:
    """Tune the peak lrs with the first seed, run the best ones with the others, write the tables."""
    parser = HfArgumentParser(CompareArguments, allow_abbrev=False)
    args, rest = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    for arm in args.arms:
        if arm not in ARMS:
            raise SettingsError(unknown("arm", arm, ARMS))
    if BASELINE not in args.arms:
        raise SettingsError(f"--arms {' '.join(args.arms)} has no {BASELINE}, with which all are compared: add it")
    first, *others = args.seeds
    if args.dry_run:
        return print("\n".join(shlex.join(task.command) for task in grid(args, rest)))
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    with locked(Path(args.output_dir)):
        settings = {"steps": args.steps, "budgets": args.budgets, "tuning_seed": first, "arguments": rest}
        tuned = tune(args, rest, settings)
        page = "\n".join(describe(repeat(args, others, rest, tuned)))
    write_atomically(Path(args.output_dir) / "compare.md", page + "\n")
    print(page)


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
