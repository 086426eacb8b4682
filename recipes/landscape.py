"""The river valley of a run: losses between its checkpoints, how far they lie along the river and across, a verdict.

    python recipes/landscape.py runs/small
    python recipes/landscape.py runs/small/landscape.json --into figures    # told and drawn again, nothing is measured

Needs two finished decays; more checkpoints in the trunk and inside the decays (--save_steps, --save_total_limit when
they are trained) show more. Evaluates on 32 evenly spaced held-out blocks of the run's own data, the same at every
point, and writes landscape.json and three pictures into the run's folder; `hf-wsd report` shows them. Killed and
repeated it goes on: each measurement is kept in RUN/_landscape.jsonl. Four budgets are about 400 measurements; with
0.5M parameters they take under a minute on two cores. Memory: the model, and for curvature two more copies of its
weights.

Several devices share the blocks, each with a whole model; flags after `--` replace those of the run's command:

    accelerate launch --num_processes 4 recipes/landscape.py runs/small --blocks 256 -- --train_file pages.jsonl
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from accelerate import Accelerator
from held_out import held_out, split_flags
from transformers import AutoModelForCausalLM

from hf_wsd.errors import SettingsError, WSDError
from hf_wsd.family import Run, read_run
from hf_wsd.history import write_atomically
from hf_wsd.landscape_plots import write_figures
from hf_wsd.surveying import Grid, survey
from hf_wsd.terrain import batches_of
from hf_wsd.valley import LANDSCAPE, Landscape, load_landscape
from hf_wsd.verdict import judge

TELL_EVERY = 10.0  # seconds


def read_arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The recipe's own flags, and those that follow `--`."""
    own, more = split_flags(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="The --output_dir of a trunk or of a WSD-S line; or a landscape.json.")
    parser.add_argument("--into", type=Path, help="Folder for the pictures; default: the run's.")
    parser.add_argument("--blocks", type=int, default=32, help="Held-out blocks at every point.")
    parser.add_argument("--batch_size", type=int, default=4, help="Blocks in a batch; of each the loss is kept.")
    parser.add_argument("--points", type=int, default=11, help="Points of a line.")
    parser.add_argument("--grid", type=int, nargs=2, default=(19, 13), help="Points of the slice along and across.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead.")
    args = parser.parse_args(own)
    for name, least in {"blocks": 1, "batch_size": 1, "points": 2}.items():
        if getattr(args, name) < least:
            raise SettingsError(f"--{name} {getattr(args, name)}: it must be at least {least}")
    if min(args.grid) < 3:
        raise SettingsError(f"--grid {args.grid[0]} {args.grid[1]}: at least 3 points each way")
    return args, more


def load_batches(run: Run, flags: list[str], args: argparse.Namespace, accelerator: Accelerator):
    """Held-out blocks as the run's own command, and flags after it, name them."""
    data = held_out(run.path, run.latest.command, flags, accelerator.main_process_first)
    data.refuse_other_tokenizer(str(newest(run)))
    return batches_of(data.blocks, count=args.blocks, size=args.batch_size)


def newest(run: Run) -> Path:
    """The last checkpoint of a run."""
    return run.checkpoints[max(run.checkpoints)]


def look(run: Run, flags: list[str], args: argparse.Namespace, accelerator: Accelerator) -> Landscape:
    """Survey a run and write what was found beside it."""
    start = last = time.monotonic()

    def tell(made: int) -> None:
        nonlocal last
        if accelerator.is_main_process and time.monotonic() - last > TELL_EVERY:
            last = time.monotonic()
            print(f"{made} points measured in {last - start:.0f} s", file=sys.stderr)

    found = survey(
        run,
        AutoModelForCausalLM.from_pretrained(newest(run)),
        load_batches(run, flags, args, accelerator),
        grid=Grid(points=args.points, along=args.grid[0], across=args.grid[1]),
        accelerator=accelerator,
        tell=tell,
    )
    if accelerator.is_main_process:
        write_atomically(run.path / LANDSCAPE, json.dumps(as_json(found), indent=1) + "\n")
        files = [run.path / LANDSCAPE, *write_figures(found, args.into or run.path)]
        print(f"written: {', '.join(map(str, files))}", file=sys.stderr)
        print(f"next: hf-wsd report {run.path}", file=sys.stderr)
    return found


def draw_again(args: argparse.Namespace) -> str:
    """The pictures of a stored landscape, drawn again; returns what is to be printed."""
    found = load_landscape(args.run)
    for file in write_figures(found, args.into or args.run.parent):
        print(f"written: {file}", file=sys.stderr)
    return json.dumps(as_json(found)) if args.json else text_of(found)


def as_json(found: Landscape) -> dict[str, object]:
    """What landscape.json holds: verdict first, then the measurements."""
    return judge(found).to_dict() | found.to_dict()


def text_of(found: Landscape) -> str:
    """Verdict and statements for a terminal."""
    verdict = judge(found)
    marks = {True: "holds", False: "does not hold", None: "not to be seen"}
    lines = [f"{marks[one.holds]:14}  {one.claim}\n{'':14}  {one.found}" for one in verdict.statements]
    return "\n".join([verdict.sentence, "", *lines, "", found.swings, found.still_on_the_hill, *found.thinned_out])


def main() -> None:
    """Parse, survey, print."""
    args, flags = read_arguments(sys.argv[1:])
    if args.run.suffix == ".json":
        return print(draw_again(args))
    accelerator = Accelerator()
    with contextlib.redirect_stdout(sys.stderr):  # transformers prints what it logs
        found = look(read_run(args.run), flags, args, accelerator)
    if accelerator.is_main_process:
        print(json.dumps(as_json(found)) if args.json else text_of(found))
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
