"""`python -m hf_wsd [flags] SCRIPT ...`: run a Trainer script that nobody edited, with our schedules registered.

accelerate launch -m hf_wsd --trunk --budgets 1B 2B 4B run_clm.py --lr_scheduler_type wsd ...
torchrun --nproc_per_node 8 -m hf_wsd --decay-fraction 0.2 run_clm.py --lr_scheduler_type wsd ...
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from hf_wsd.errors import WSDError
from hf_wsd.lengths import is_length
from hf_wsd.shapes import shape_names

_BUDGETS = """decayed models you will want: tokens (2M, 1.5B) or steps (3000); their fork points are saved and kept.
A trunk stops at the last one unless the script has --max_steps"""
_CALLS = """scripts without a Trainer: by what they multiply the totals that they give get_scheduler; default: what
their --max_train_steps shows, else the number of processes"""


def flags() -> argparse.ArgumentParser:
    """The launcher's own flags; `hf_wsd.settings.Settings` says what they mean."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_wsd",
        usage="%(prog)s [flags] SCRIPT.py [script arguments]  (or: [flags] -m MODULE [module arguments])",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Give the script --lr_scheduler_type wsd, wsd_s, cyclic_cosine or multi_step. N is steps, 10% of the "
        "run, or with --tokens-per-step tokens (2M). Each flag is a variable: HF_WSD_DECAY_FRACTION=0.2.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--trunk", action="store_true", help="train at the peak lr without an end date; decay later with `hf-wsd decay`"
    )
    add("--budgets", nargs="+", metavar="N", help=_BUDGETS)
    add("--decay-fraction", metavar="F", help="decay steps / steps of the decayed model (wsd_s: cycle); default 0.1")
    add("--num-decay-steps", metavar="N", help="the decay in steps instead")
    add("--decay-type", metavar="SHAPE", help=f"shape of the decay: {shape_names()}")
    add("--decay-params", nargs="+", metavar="NAME=X", help="its parameters: p=1.5 (power), half_life=5000, factor=0.7")
    add("--min-lr-ratio", metavar="R", help="lr at the end of the decay / peak lr; default 0 (wsd), 0.1 (wsd_s)")
    add("--warmup-type", metavar="SHAPE", help="shape of the warm-up: linear (default), cosine, 1-sqrt")
    add("--warmup-start", metavar="R", help="multiplier of the warm-up's first update; default --min-lr-ratio")
    add("--num-min-steps", metavar="N", help="updates at the minimum after the decay")
    add("--cycle-ends", nargs="+", metavar="N", help="wsd_s, cyclic_cosine: lengths at which a decayed model is wanted")
    add("--cycle-peaks", nargs="+", metavar="R", help="wsd_s, cyclic_cosine: peak of each cycle / peak lr; default 1")
    add("--num-rewarmup-steps", metavar="N", help="wsd_s, cyclic_cosine: climb back to the peak in later cycles")
    add("--rewarmup-fraction", metavar="F", help="the climb as a part of the cycle instead")
    add("--milestones", nargs="+", metavar="N", help="multi_step: first steps at each lower multiplier")
    add("--milestone-fractions", nargs="+", metavar="F", help="the same as parts of the run; default 0.8 0.9")
    add(
        "--multipliers",
        nargs="+",
        metavar="R",
        help="multi_step: lr / peak lr from each milestone on; default 0.316 0.1",
    )
    add("--tokens-per-step", metavar="N", help="tokens of one update, where they cannot be counted from the data")
    add("--samples-per-step", metavar="N", help="samples of one update, for lengths such as 640samples")
    add("--calls-per-update", metavar="N", help=_CALLS)
    _add_flags_of_run(parser.add_argument_group("checkpoints, jobs and deadlines").add_argument)
    return parser


def _add_flags_of_run(add: Callable[..., object]) -> None:
    add("--allow", nargs="+", metavar="NAME", help="differences to the checkpoint's run that are meant: learning_rate")
    add("--expect", metavar="INTENT", help="refuse the run if it is not this: start, continue, branch or extend")
    add("--rewarmup-at", metavar="K", help="resume from a checkpoint of step K that has no optimizer state")
    add("--rewarmup-steps", metavar="N", help="the lr climbs to its peak again over N steps; 0: at once")
    add("--keep-every", metavar="N", help="keep a checkpoint for good every so many steps")
    add("--finish-by", metavar="TIME", help="start the decay so that all ends before: 2026-12-01T08:00")
    add("--time-budget", metavar="TIME", help="the same as a duration over all jobs of the run: 23h")
    add("--job-time-limit", metavar="TIME", help="save and exit before the job has run so long: 4h; default: Slurm's")
    add("--on-job-end", metavar="WHAT", help="save (default), or decay where the measured time allows it")
    add("--on-damage", metavar="WHAT", help="a damaged newest checkpoint: pass-over (default) or refuse")
    add("--decay-optimizer", nargs="+", metavar="NAME=X", help="settings of the optimizer in the decay: beta2=0.99")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our flags, and the script (or `-m module`) with its own arguments.

    >>> split(["--budgets", "1B", "2B", "run.py", "--trunk"])
    (['--budgets', '1B', '2B'], ['run.py', '--trunk'])
    """
    for i, arg in enumerate(argv):
        if (
            arg == "-m"
            or arg.endswith(".py")
            or (not is_length(arg) and not arg.startswith("-") and Path(arg).is_file())
        ):
            return list(argv[:i]), list(argv[i:])
    return list(argv), []


def _with_dashes(arg: str) -> str:
    """A flag of ours may be written with underscores too."""
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value if arg.startswith("--") else arg


def main() -> None:
    """Register the schedules, then run the script as if python had."""
    ours, target = split(sys.argv[1:])
    ours = [_with_dashes(arg) for arg in ours]
    parser = flags()
    read, strange = parser.parse_known_args(ours)
    if strange:
        near = get_close_matches(strange[0], parser._option_string_actions, n=1, cutoff=0.85)
        hint = f": did you mean {near[0]}?" if near else "; --help lists them."
        parser.error(f"{strange[0]} is no flag of the launcher{hint} The script's own arguments follow SCRIPT.py")
    given = {name: value for name, value in vars(read).items() if value not in (None, False)}  # "" is refused
    if not target or target == ["-m"]:
        parser.error("no SCRIPT.py (or -m MODULE) to run")
    if target[0] != "-m" and not Path(target[0]).is_file():
        parser.error(f"no script at {target[0]}")
    from hf_wsd.registration import register

    try:
        register(**given)
        run(target)
        from hf_wsd.ranks import leave

        leave()
    except WSDError as error:  # its message is the repair; a traceback would bury it
        sys.exit(f"hf_wsd: {error}")


def run(target: list[str]) -> None:
    """Run a script, or a module after `-m`, as `__main__` with its own arguments."""
    if target[0] == "-m":
        sys.argv = target[1:]
        sys.path.insert(0, "")
        runpy.run_module(target[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = target
        sys.path.insert(0, str(Path(target[0]).resolve().parent))
        runpy.run_path(target[0], run_name="__main__")


if __name__ == "__main__":
    main()
