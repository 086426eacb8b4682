"""`hf-wsd`: decay branches, trees and reports from the shell. Results go to stdout, talk to stderr."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hf_wsd.adopting import adopt
from hf_wsd.doctor import doctor
from hf_wsd.errors import SettingsError, WSDError
from hf_wsd.fitting import fit
from hf_wsd.forecasting import forecast
from hf_wsd.merging import merge
from hf_wsd.planning import plan
from hf_wsd.pruning import prune
from hf_wsd.publishing import publish
from hf_wsd.reporting import report
from hf_wsd.rewinding import rewind
from hf_wsd.shapes import shape_names

app = typer.Typer(
    help="Warmup-Stable-Decay: train one trunk, get a finished model at every budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
out, talk = Console(), Console(stderr=True, highlight=False, soft_wrap=True)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The --output_dir of the trunk.", show_default=False)]
LauncherWords = Annotated[
    str | None, typer.Option(help="What starts the processes: 'accelerate launch --config_file x.yaml'.")
]
ScriptArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- ARGUMENT", help="More arguments for the script: -- --decay_dataset code.jsonl"),
]
Budgets = Annotated[list[str] | None, typer.Option(help="Decayed models wanted: tokens (2M, 1.5B) or steps.")]
OptimizerSettings = Annotated[
    list[str] | None, typer.Option(metavar="NAME=X", help="Of the optimizer in the decay: beta2, weight_decay.")
]
Control = Annotated[bool, typer.Option("--control", help="Train the decay without --optimizer and ARGUMENTS too.")]
Allowed = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Differences to the trunk that are meant: device, threads.")
]
Then = Annotated[str | None, typer.Option(help="After --now: stop, or continue the trunk (recipes/pretrain.py).")]
Extend = Annotated[bool, typer.Option("--extend", help="With --now: past the run's planned end if need be.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@app.command()
def decay(
    run: RunFolder,
    arguments: ScriptArguments = None,
    budgets: Budgets = None,
    at: Annotated[list[str] | None, typer.Option(help="Fork points instead: lengths with a saved checkpoint.")] = None,
    decay_fraction: Annotated[float | None, typer.Option(help="Decay steps / steps of the decayed model.")] = None,
    decay_steps: Annotated[str | None, typer.Option(help="The decay in steps (or tokens) instead.")] = None,
    decay_type: Annotated[str | None, typer.Option(help=f"Shape: {shape_names()}.")] = None,
    decay_params: Annotated[list[str] | None, typer.Option(metavar="NAME=X", help="Parameters of the shape.")] = None,
    min_lr_ratio: Annotated[float | None, typer.Option(help="Lr at the end / peak lr.")] = None,
    optimizer: OptimizerSettings = None,
    control: Control = False,
    allow: Allowed = None,
    name: Annotated[str | None, typer.Option(help="Folder name of the branch (one decay only).")] = None,
    launcher: LauncherWords = None,
    jobs: Annotated[int, typer.Option(min=1, help="Branches that run at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and write nothing.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Ask the job that is training in RUN to decay now.")] = False,
    then: Then = None,
    extend: Extend = False,
    wait: Annotated[float, typer.Option(help="With --now: seconds for the job to answer.")] = 120,
    as_json: AsJson = False,
) -> None:
    """Train decay branches off RUN's checkpoints: each a finished model. Repeating the command resumes it.

    What is not given is as the trunk was started: its budgets, decay fraction and shape.
    """
    if now:
        if budgets or at or name or launcher or dry_run or allow or arguments or optimizer or control:
            raise SettingsError(
                "--now asks a running job for its decay: no --budgets, --at, --name, --launcher, --dry-run, "
                "--allow, --optimizer, --control, and no arguments of the script"
            )
        asked: dict[str, Any] = {"decay_fraction": decay_fraction, "num_decay_steps": decay_steps, "then": then}
        asked |= {"decay_type": decay_type, "decay_params": decay_params, "min_lr_ratio": min_lr_ratio}
        return _decay_now(run, as_json=as_json, wait=wait, extend=extend, **asked)
    from hf_wsd.casts import cast
    from hf_wsd.family import read_run
    from hf_wsd.forking import fork_all, plan_decays
    from hf_wsd.running import read_arguments, read_launcher

    words = read_launcher(launcher) if launcher is not None else []
    trunk = read_run(run)
    steps = cast("num_decay_steps", decay_steps)  # read as a number, so that a fraction gets its own message
    plan = plan_decays(trunk, budgets=budgets or (), at=at or (), num_decay_steps=steps, decay_fraction=decay_fraction)
    shape = {"decay_type": decay_type, "decay_params": cast("decay_params", decay_params), "min_lr_ratio": min_lr_ratio}
    changes = {"arguments": read_arguments(arguments or ()), "optimizer": cast("decay_optimizer", optimizer)}
    branches = fork_all(trunk, plan, **shape, **changes, allow=allow or (), control=control, name=name)
    _run_branches(run, branches, words, jobs=jobs, dry_run=dry_run, as_json=as_json)


def _run_branches(
    run: Path, branches: Sequence[Any], words: list[str], *, jobs: int, dry_run: bool, as_json: bool
) -> None:
    """Say what is planned, and train it."""
    from hf_wsd.running import branch_command, run_branches, show_command

    for branch in branches:
        talk.print(str(branch) + (" (finished)" if branch.finished else ""))
        for problem in branch.damage:
            talk.print(f"  passed over: {problem}")
    if dry_run:
        shown = [(b, branch_command(b, words)[0], show_command(b, words)) for b in branches]
        rows = [{"branch": str(b.folder), "argv": argv, "shell": shell} for b, argv, shell in shown]
        return _print_json(rows) if as_json else print("\n".join(str(row["shell"]) for row in rows))
    events = run_branches(branches, jobs=jobs, launcher=words)
    failed = [str(branch.folder) for branch, event in events if _tell(branch, event)]
    if failed:
        raise WSDError(
            f"{len(failed)} of {len(branches)} branches failed: {', '.join(failed)}. The command resumes them"
        )
    if as_json:
        _print_json([{"branch": str(b.folder), "fork": b.record.step, "end": b.end} for b in branches])
    talk.print(f"next: hf-wsd report {run}")


def _decay_now(run: Path, *, as_json: bool, wait: float, **wish: Any) -> None:
    """Ask the running job, and print what it says."""
    from hf_wsd.asking import ask_now
    from hf_wsd.casts import cast
    from hf_wsd.decision import Request

    read = {
        key: cast(key, value) if key in ("num_decay_steps", "decay_params") else value for key, value in wish.items()
    }
    said = ask_now(run, Request(by="hf-wsd decay", **read), wait=wait)
    if as_json:
        return _print_json({"run": str(run), "said": said})
    talk.print(f"{run}: {said}")


def _tell(branch: Any, event: str) -> bool:
    """Say what happened to a branch; True if it failed."""
    from hf_wsd.checkpoint import step_in_name

    if event == "started":
        step = step_in_name(branch.checkpoint)
        talk.print(
            f"{branch.folder.name}: training from step {step} to {branch.end}, log in {branch.folder / 'run.log'}"
        )
        return False
    talk.print(f"{branch.folder.name}: {event}")
    return event != "finished"


app.command("fork", hidden=True)(decay)
app.command()(plan)
app.command()(fit)
app.command()(forecast)
app.command()(merge)
app.command()(adopt)
app.command()(rewind)
app.command()(prune)
app.command()(publish)
app.command()(report)
app.command()(doctor)


_ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("anneal", hidden=True, context_settings=_ANY_ARGUMENTS)
@app.command("cooldown", hidden=True, context_settings=_ANY_ARGUMENTS)
def other_words() -> None:
    """Other systems' words for a decay."""
    raise WSDError("did you mean `hf-wsd decay`? It takes a RUN and trains decayed models off its checkpoints")


@app.command()
def tree(run: RunFolder, as_json: AsJson = False) -> None:
    """Show RUN and its branches: checkpoints kept and why, losses, what is running."""
    from hf_wsd.family import read_run
    from hf_wsd.report import make_report
    from hf_wsd.tree import disk_dict, render_tree, stock_resume

    family = read_run(run)
    stock = stock_resume(family)
    if as_json:
        return _print_json(make_report(family).to_dict() | disk_dict(family) | {"without_hf_wsd": stock})
    out.print(render_tree(family))
    if stock:
        talk.print(
            f"without hf_wsd: {shlex.join(stock['flags']) if 'flags' in stock else stock['reason']}", markup=False
        )


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder of the demo's trunk.")] = Path("demo"),
) -> None:
    """Train a 0.5M-parameter GPT-2 trunk on the embedded corpus, four decay branches, and report. About six minutes."""
    from hf_wsd.demo import train_trunk

    # A model this small spends its time in short parallel loops. On busy cores OpenMP's threads would spin for one
    # another: 20 times slower, measured on two cores of which one was taken.
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")
    train_trunk(output_dir)
    decay(output_dir)
    report([output_dir])


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


_PAIRS = (["--decay-params"], ["--optimizer"], ["--columns"], ["--where"])


def spread(argv: Sequence[str]) -> list[str]:
    """`--budgets 1B 2B` as `--budgets 1B --budgets 2B`, the form that typer reads; what follows `--` is another's.

    >>> spread(["decay", "--budgets", "1B", "2B", "RUN"])
    ['decay', '--budgets', '1B', '--budgets', '2B', 'RUN']
    >>> spread(["doctor", "--", "train.py", "--budgets", "1B", "2B"])
    ['doctor', '--', 'train.py', '--budgets', '1B', '2B']
    """
    from hf_wsd.lengths import is_length
    from hf_wsd.sameness import NAMES

    spread_out: list[str] = []
    ours = argv.index("--") if "--" in argv else len(argv)
    for word in argv[:ours]:
        before = spread_out[-2:-1]
        lengths = before in (["--budgets"], ["--at"], ["--steps"], ["--stable"])
        names = before == ["--allow"] and word in NAMES
        asked = argv[0] in ("fit", "forecast") and before and _is_one_more(before[0], word)
        if (lengths and is_length(word)) or (before in _PAIRS and "=" in word) or names or asked:
            spread_out += before
        spread_out.append(word)
    return [*spread_out, *argv[ours:]]


def _is_one_more(option: str, word: str) -> bool:
    """Whether a word is one more value of an option of `fit` or `forecast` that takes several."""
    from hf_wsd.lengths import is_length
    from hf_wsd.points import MIXABLE
    from hf_wsd.shapes import SHAPES
    from hf_wsd.tables import TABLES

    if option in ("--fork", "--decay-steps", "--predict", "--parameters"):
        return is_length(word)
    if option in ("--decay-fraction", "--flops"):
        return re.fullmatch(r"[\d.]+(e\+?\d+)?", word) is not None
    if option == "--allow":
        return word in MIXABLE
    if option == "--decay-type":
        return word in SHAPES
    return (option == "--curve" and word.endswith(TABLES)) or (option == "--only" and not word.startswith("-"))


def main() -> None:
    """The console script: errors of ours are one message, Ctrl-C says how to go on."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that running branches are ended too
    sys.path.append(os.getcwd())  # for shapes of the user's own, my_module:my_shape
    try:
        app(spread(sys.argv[1:]))
    except WSDError as error:
        sys.exit(f"hf-wsd: {error}")
    except KeyboardInterrupt:
        sys.exit("hf-wsd: interrupted; repeat the command to go on from the newest checkpoints")


if __name__ == "__main__":
    main()
