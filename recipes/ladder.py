"""A ladder: M model sizes x K token budgets, one trunk per size, then the scaling law and one report of all.

    python recipes/ladder.py --output_dir runs/ladder --presets 0.1M 0.25M 0.5M --budgets 0.2M 0.4M 0.8M 1.6M \
        --lrs 2.5e-3 5e-3 1e-2 --sweep_budget 0.4M -- --decay_fraction 0.2 --max_eval_blocks 128

What it will cost, before anything is trained, and budgets that grow with the model:

    python recipes/ladder.py --output_dir runs/ladder --presets 10M 30M 124M --tokens_per_parameter 5 10 20 40 \
        --lrs 5e-4 1e-3 2e-3 --sweep_budget 50M --dry_run -- --block_size 1024

On several devices, each decayed model evaluated by lm-eval:

    python recipes/ladder.py --output_dir runs/ladder ... --launcher "accelerate launch --num_processes 8" \
        --eval_command "lm_eval --model hf --model_args pretrained={model} --tasks piqa --output_path {output}"

What follows `--` goes to recipes/pretrain.py. The peak lr of each size is the one whose short WSD run, of
--sweep_budget tokens, ends lowest; with a single one of --lrs nothing is swept. Too short a sweep misleads: runs of 98
steps chose 0.02 for 0.5M parameters, whose models of 195 to 1562 steps then ended above those of 0.25M. A repeated
command goes on where it stopped, also with more sizes or larger budgets. In --output_dir: a run per size, `_sweep/`,
the report, and `ladder.json` with peak lrs, evaluations, times, cost, fit and doubts.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any

import pretrain
import torch
from blocks import DataArguments, load_tokenizer
from family_arguments import FamilyArguments
from ladder_plan import Ledger, Size, Sweep, cost_after, cost_before, cost_lines, doubts, make_size, trained_tokens
from transformers import HfArgumentParser

from hf_wsd.errors import FitError, RecordError, RunError, SettingsError, WSDError
from hf_wsd.evaluating import read_evaluation, run_evaluation
from hf_wsd.family import Run, read_run
from hf_wsd.history import to_json, write_atomically
from hf_wsd.lengths import Length
from hf_wsd.lock import locked
from hf_wsd.running import LOG, read_launcher

RESULTS, EVALUATION = "ladder.json", "evaluation.json"
OWN_FLAGS = ("output_dir", "preset", "budgets", "learning_rate", "trunk", "max_steps", "lr_scheduler_type")


@dataclass
class LadderArguments:
    """Sizes, budgets, and how the peak lr is found."""

    output_dir: str = field(metadata={"help": "Folder of the ladder."})
    presets: list[str] = field(metadata={"help": f"Model sizes: {', '.join(pretrain.PRESETS)}."})
    budgets: list[str] = field(default_factory=list, metadata={"help": "Lengths of the decayed models: 0.2M 0.4M."})
    tokens_per_parameter: list[float] = field(default_factory=list, metadata={"help": "The same by size: 5 10 20."})
    lrs: list[float] = field(default_factory=lambda: [2.5e-3, 5e-3, 1e-2], metadata={"help": "Peak lrs to try."})
    sweep_budget: str | None = field(default=None, metadata={"help": "Length of those runs; the smallest budget."})
    eval_command: str | None = field(
        default=None, metadata={"help": "Prints JSON about the model in {model}, or writes it into {output}."}
    )
    launcher: str | None = field(default=None, metadata={"help": "What starts the processes: 'accelerate launch'."})
    dry_run: bool = field(default=False, metadata={"help": "Say what it costs, and train nothing."})


def read_sizes(args: LadderArguments, rest: Sequence[str]) -> list[Size]:
    """The sizes of a ladder; their parameters are counted on models without memory."""
    for word in rest:
        if word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") in OWN_FLAGS:
            raise SettingsError(f"{word} after --: the ladder sets it itself")
    parser = HfArgumentParser((pretrain.ModelArguments, DataArguments, FamilyArguments), allow_abbrev=False)
    model, data, family, _ = parser.parse_args_into_dataclasses(list(rest), return_remaining_strings=True)
    tokenizer = load_tokenizer(data)
    decay = {} if family.decay_fraction is None else {"decay_fraction": family.decay_fraction}
    sizes = []
    for preset in args.presets:
        model.preset = preset
        with torch.device("meta"):
            made = pretrain.new_model(model, len(tokenizer), data.block_size, tokenizer.eos_token_id)
        made.tie_weights()
        more = {"sweep_budget": args.sweep_budget, "decay": decay}
        sizes.append(make_size(preset, made.num_parameters(), args.budgets, args.tokens_per_parameter, **more))
    return sizes


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Starts recipes/pretrain.py.

    Args:
        folder: of the ladder.
        launcher: words before the script.
        rest: arguments behind it.
        ledger: where times are kept.
    """

    folder: Path
    launcher: tuple[str, ...]
    rest: tuple[str, ...]
    ledger: Ledger

    def train(self, name: str, size: Size, lr: float, budgets: Sequence[str]) -> Run:
        """The finished run of one command; a repeated one goes on, a finished one is left alone.

        Raises:
            RunError: it failed.
        """
        run = self.folder / name
        if (done := finished(run, budgets)) is not None:
            if done.latest.peak_lr != lr:
                raise RunError(
                    f"{run} was trained at peak lr {done.latest.peak_lr}, and now it would be {lr:g}: give the --lrs "
                    "of before, or another --output_dir"
                )
            return done
        run.mkdir(parents=True, exist_ok=True)
        flags = ["--output_dir", str(run), "--preset", size.preset, "--learning_rate", f"{lr:g}"]
        script = str(Path(__file__).with_name("pretrain.py"))
        command = [*self.launcher, script, *flags, "--budgets", *budgets, "--disable_tqdm", "True", *self.rest]
        environment = {"GOMP_SPINCOUNT": "50000"}  # as in `hf-wsd demo`: many short parallel loops on busy cores
        environment |= {name: value for name, value in os.environ.items() if not name.startswith("HF_WSD_")}
        say(f"{name}: {size.parameters:,} parameters, {', '.join(budgets)}, peak lr {lr:g}, log in {run / LOG}")
        begin = time.monotonic()
        with locked(run) as lock, (run / LOG).open("ab") as log:
            status = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,)
            ).returncode
        seconds = self.ledger.told["seconds"].get(name, 0.0) + time.monotonic() - begin
        self.ledger.note("seconds", name, round(seconds, 1))
        if (done := finished(run, budgets)) is None:
            tail = "\n".join((run / LOG).read_text(errors="replace").splitlines()[-15:])
            raise RunError(f"{run} failed (exit {status}); the end of its log:\n{tail}")
        self.ledger.note("tokens", name, trained_tokens(done))
        return done

    def sweep(self, size: Size, lrs: Sequence[float]) -> Sweep:
        """Losses of the short runs; the grid grows where the best is at its edge. Results outlive their folders."""
        known = self.ledger.told["sweeps"].get(size.preset, {})
        losses = {float(lr): inf if loss is None else loss for lr, loss in known.items()}
        waiting = [lr for lr in lrs if lr not in losses]
        while True:
            for lr in waiting:
                run = self.train(f"_sweep/{size.preset}-lr{lr:g}", size, lr, [size.sweep_budget])
                loss = run.losses_at(run.latest.step).get("loss", inf)
                losses[lr] = loss if isfinite(loss) else inf
                told = {f"{lr:g}": loss if isfinite(loss) else None for lr, loss in losses.items()}
                self.ledger.note("sweeps", size.preset, told)
            sweep = Sweep(losses=losses)
            if (beyond := sweep.next(grid=len(lrs))) is None:
                return sweep
            waiting = [beyond]


def finished(run: Path, budgets: Sequence[str]) -> Run | None:
    """The run if all its models are there."""
    try:
        found = read_run(run)
    except RecordError:
        return None
    requested = {branch.identity.requested for branch in found.branches if branch.finished} - {None}
    there = {Length(text).tokens for text in requested}
    one = len(budgets) == 1 and found.finished
    return found if one or there >= {Length(budget).tokens for budget in budgets} else None


def evaluate_models(runs: Sequence[Run], command: str, ledger: Ledger) -> None:
    """Evaluate each decayed model that has not been; what fails is listed and stops nothing."""
    for model in (branch.path for run in runs for branch in run.branches if branch.finished):
        name, file = str(model.relative_to(ledger.file.parent)), model / EVALUATION
        before: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # not there yet, or damaged: evaluated again
            before = json.loads(file.read_text(encoding="utf-8"))
        if before.get("command") != command:
            say(f"{name}: evaluating")
            try:
                before = {"command": command, "result": run_evaluation(command, model)}
                write_atomically(file, to_json(before, indent=1) + "\n")
            except RunError as error:
                ledger.note("failed", name, str(error))
                say(f"{name}: {error}")
                continue
        ledger.note("evaluations", name, before["result"])


def train_all(trainings: Trainings, sizes: Sequence[Size], lrs: Sequence[float]) -> list[Run]:
    """Sweep and family of every size; a size that fails is listed, and the others go on."""
    runs = []
    for size in sizes:
        try:
            lr = lrs[0]
            if len(lrs) > 1:
                sweep = trainings.sweep(size, lrs)
                if sweep.diverged:
                    raise RunError(f"{size.preset}: no peak lr of {', '.join(map(str, sweep.losses))} gives a number")
                say(sweep.statement(size))
                trainings.ledger.note("peak_lrs", size.preset, {"lr": sweep.best, "at_edge_of_grid": sweep.at_edge})
                lr = sweep.best
            runs.append(trainings.train(size.preset, size, lr, size.budgets))
        except WSDError as error:
            trainings.ledger.note("failed", size.preset, str(error))
            say(f"{size.preset}: {error}")
    return runs


def fit_all(runs: Sequence[Run], ledger: Ledger) -> None:
    """The scaling law of all decayed models, or why there is none."""
    from hf_wsd.points import points_of
    from hf_wsd.scaling import fit_law

    points = [point for run in runs for point in points_of(run)]
    ledger.told["doubts"] = list(doubts(points))
    try:
        fit = fit_law(points)
        ledger.told["fit"] = fit.to_dict()
        say("\n".join(fit.statements()))
    except FitError as error:
        ledger.told["fit"] = {"refused": str(error)}
        say(f"no fit: {error}")
    for doubt in ledger.told["doubts"]:
        say(f"doubtful: {doubt}")
    ledger.write()


def report(folder: Path, runs: Sequence[Run]) -> None:
    """One page of all runs, in the ladder's folder; a failure is the report's alone."""
    command = [sys.executable, "-m", "hf_wsd.cli", "report", *(str(run.path) for run in runs), "--output", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise RunError(f"all is trained, but the report failed; try {shlex.join(['hf-wsd', *command[3:]])}")
    say(f"next: {shlex.join(['hf-wsd', 'fit', *command[4:-2]])} --predict ...")


def say(text: str) -> None:
    """Talk: stdout is the report's."""
    print(text, file=sys.stderr, flush=True)


def read_arguments(argv: Sequence[str]) -> tuple[LadderArguments, list[str]]:
    """The ladder's arguments, and those that follow `--`."""
    ours, rest = list(argv), []
    if "--" in ours:
        ours, rest = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    (args,) = HfArgumentParser(LadderArguments, allow_abbrev=False).parse_args_into_dataclasses(ours)
    args.lrs = sorted({float(f"{lr:g}") for lr in args.lrs})
    return args, rest


def main() -> None:
    """State the cost, train what is missing, evaluate, fit, report."""
    args, rest = read_arguments(sys.argv[1:])
    sizes = read_sizes(args, rest)
    if args.eval_command:
        read_evaluation(args.eval_command)
    cost = cost_before(sizes, len(args.lrs))
    say("\n".join(cost_lines(cost)))
    if args.dry_run:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the training process is ended too
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    launcher = tuple(read_launcher(args.launcher) if args.launcher else (sys.executable,))
    asked = {name: value for name, value in vars(args).items() if name not in ("output_dir", "dry_run")}
    with locked(folder):
        ledger = Ledger(folder / RESULTS, asked | {"arguments": rest})
        ledger.told["planned"] = cost
        runs = train_all(Trainings(folder=folder, launcher=launcher, rest=tuple(rest), ledger=ledger), sizes, args.lrs)
        if args.eval_command:
            evaluate_models(runs, args.eval_command, ledger)
        say(cost_after(ledger))
        if runs:
            fit_all(runs, ledger)
            report(folder, runs)
    if failed := ledger.told["failed"]:
        raise RunError(
            f"{len(failed)} failed: {', '.join(failed)}; see {folder / RESULTS}. The command tries them again"
        )


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; repeat the command to go on") from None
