"""`hf-wsd rewind`: back to a checkpoint before a loss spike, and on without the batches of the next updates."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Annotated

import typer

from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.errors import ForkError, RunError
from hf_wsd.family import Run, read_run
from hf_wsd.forking import Branch, continued, samples_per_step
from hf_wsd.lengths import to_steps
from hf_wsd.lineage import BRANCHES, RECORD, Lineage, Parent
from hf_wsd.running import branch_command, read_launcher, run_branches, show_command


def rewind(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --output_dir of the run.", show_default=False)],
    to: Annotated[str, typer.Option(help="Step (or tokens) to go back to: one with a saved checkpoint.")],
    skip: Annotated[str, typer.Option(help="Updates (or tokens) whose batches are passed over from there on.")],
    name: Annotated[str | None, typer.Option(help="Folder name of the rewound run.")] = None,
    launcher: Annotated[str | None, typer.Option(help="What starts the processes: 'torchrun ...'.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Go back to a checkpoint before a loss spike, and on without the batches of the next updates.

    RUN stays what it is: the rewound run gets a folder in RUN/_branches, and can be decayed like any other. The batches
    are moved to the end of their epoch. Repeating the command resumes it.
    """
    words = read_launcher(launcher) if launcher is not None else []
    branch = rewound(read_run(run), to=to, skip=skip, name=name)
    start, stop = branch.record.moved_data[-1]
    told = f"from step {start} to {branch.end} without the batches of updates {start}-{stop - 1}"
    print(f"{branch.folder}: {told}{' (finished)' if branch.finished else ''}", file=sys.stderr)
    for problem in branch.damage:
        print(f"  passed over: {problem}", file=sys.stderr)
    row = {"run": str(branch.folder), "step": start, "moved": [start, stop], "end": branch.end}
    if dry_run:
        row |= {"argv": branch_command(branch, words)[0], "shell": show_command(branch, words)}
        return print(json.dumps(row, indent=1) if as_json else row["shell"])
    for _, event in run_branches([branch], launcher=words):
        print(f"{branch.folder.name}: {event}", file=sys.stderr)
        if event not in ("started", "finished"):
            raise RunError(f"{branch.folder} has failed. The command resumes it")
    if as_json:
        print(json.dumps(row, indent=1))
    print(f"next: hf-wsd decay {branch.folder}", file=sys.stderr)


def rewound(run: Run, *, to: str, skip: str, name: str | None = None) -> Branch:
    """The rewound run; nothing is written.

    Args:
        run: the run to go back in.
        to: length after which a checkpoint is saved.
        skip: length of what is passed over.
        name: its folder name; "rewind-<step>-skip-<updates>" if None.

    Raises:
        ForkError: there is no checkpoint, or the batches are the last of their epoch. CheckpointError: the checkpoint
            is not whole. RunError: the run has no Trainer, or another run has that name.
    """
    latest = run.latest
    per_step = {"tokens_per_step": latest.tokens_per_step, "samples_per_step": samples_per_step(latest)}
    step, updates = (to_steps(length, **per_step, of=latest.last_step) for length in (to, skip))
    if step is None or step not in run.checkpoints:
        saved = ", ".join(map(str, run.checkpoints)) or "none"
        raise ForkError(f"{run.path} has no checkpoint at step {step}. Saved: {saved} (--keep-every keeps more)")
    if not updates:
        raise ForkError(f"--skip {skip} is less than an update: there is nothing to pass over")
    checkpoint = run.checkpoints[step]
    check_checkpoint(checkpoint)
    record = run.records.get(step) or Lineage.read(checkpoint)
    _refuse(run, record, updates)
    folder = run.path / BRANCHES / (name or f"rewind-{step}-skip-{updates}")
    planned = replace(
        record,
        kind="planned",
        schedule=latest.schedule,
        last_step=latest.last_step,
        intent="rewind",
        parent=Parent(checkpoint=os.path.relpath(checkpoint, folder), step=step),
        settings=latest.settings,
        moved_data=(*record.moved_data, (step, step + updates)),
        losses={},
    )
    if (folder / RECORD).exists() and Lineage.read(folder).moved_data != planned.moved_data:
        raise RunError(f"{folder} is another run already: give this one a --name of its own")
    return continued(Branch(folder=folder, record=planned, checkpoint=checkpoint))


def _refuse(run: Run, record: Lineage, updates: int) -> None:
    """Refuse what no rewound run can do, as far as the record tells; the run itself looks again."""
    step, end = record.step, run.latest.last_step
    if any(run.checkpoints[step].glob("random_states_*.pkl")):
        raise RunError(f"{run.path} was not trained by a Trainer: only there can batches be passed over")
    if end is None:
        raise ForkError(f"{run.path} was adopted and has not been trained on: its length is not known yet")
    if step >= end:
        raise ForkError(f"{run.path} ends at step {end}: nothing is left to train from step {step}")
    samples, length = samples_per_step(record), record.data.partition("-")[0]
    if samples and length.isdecimal():
        per_epoch = ceil(int(length) / samples)
        if step % per_epoch + updates >= per_epoch:
            raise ForkError(
                f"updates {step}-{step + updates - 1} are the last of their epoch (of {per_epoch} updates): their "
                "batches cannot be moved to its end. Skip fewer than "
                f"{per_epoch - step % per_epoch}, or go back to another step"
            )
