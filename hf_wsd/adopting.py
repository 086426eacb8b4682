"""`hf-wsd adopt`: a record for a checkpoint of another scheduler, so that a trunk or a decay goes on from it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_wsd.by_name import NAMES
from hf_wsd.checkpoint import FORK_POINTS, saved_checkpoints
from hf_wsd.command import capture_command
from hf_wsd.errors import ForkError, RunError, SettingsError
from hf_wsd.family import read_run
from hf_wsd.history import HISTORY, losses_of, read_history, to_json, write_atomically
from hf_wsd.lineage import RECORD, Lineage, Parent
from hf_wsd.mending import link_checkpoint
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase
from hf_wsd.sources import read_schedule

if TYPE_CHECKING:
    from hf_wsd.foreign import Foreign

_SETUP = (  # what must match for equal bits, as far as TrainingArguments has it
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed", "max_grad_norm"),
    *("label_smoothing_factor", "dataloader_num_workers", "torch_compile"),
)
_COMMAND = "The trunk's command, for `hf-wsd decay`: -- python -m hf_wsd train.py --lr_scheduler_type wsd ..."
_SCHEDULE = "What it was trained on: 'wsd(num_warmup_steps=100, num_decay_steps=0)'; default: what its arguments say."


def adopt(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Of any Trainer.", show_default=False)],
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND]", help=_COMMAND)] = None,
    into: Annotated[Path | None, typer.Option(metavar="RUN", help="Its new run; default: beside the old one.")] = None,
    schedule: Annotated[str | None, typer.Option(help=_SCHEDULE)] = None,
    tokens_per_step: Annotated[int | None, typer.Option(help="Tokens of one update over all processes.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be recorded, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Give a record to a checkpoint of another scheduler, so that a trunk or `hf-wsd decay` goes on from it.

    The schedule that is stated, or that its arguments tell, is checked against every lr that was logged. The checkpoint
    is not touched: RUN gets hard links to its files, with a scheduler state of ours.
    """
    from hf_wsd.foreign import derive_schedule, read_foreign

    foreign = read_foreign(checkpoint)
    trained = read_schedule(schedule)[0] if schedule else derive_schedule(foreign)
    foreign.check(trained)
    _refuse_decay(foreign, trained)
    run = into or checkpoint.resolve().parent.with_name(f"{checkpoint.resolve().parent.name}-wsd")
    record = adopted(foreign, trained, run=run, tokens_per_step=tokens_per_step, command=command or ())
    _refuse_run(run, record)
    unknown = unknown_facts(foreign, record)
    if not dry_run:
        write(foreign, record, run)
    row = {"run": str(run), "step": record.step, "schedule": str(trained), "unknown": unknown}
    if as_json:
        return print(json.dumps(row, indent=1))
    print(f"{run}: the checkpoint at step {record.step} of '{trained}', peak lr {record.peak_lrs[0]:g}")
    print("".join(f"  not known: {fact}\n" for fact in unknown), end="", file=sys.stderr)
    print(f"next: hf-wsd decay {run} --at {record.step}", file=sys.stderr)


def adopted(
    foreign: Foreign, schedule: Schedule, *, run: Path, tokens_per_step: int | None, command: Sequence[str]
) -> Lineage:
    """The record that a checkpoint gets.

    Args:
        foreign: what the checkpoint tells.
        schedule: on which it was trained.
        run: the folder of its new run.
        tokens_per_step: of one update over all processes, if it is known.
        command: what each process of the trunk runs, if it is known.

    Raises:
        RunError: the command starts the processes, or has a scheduler of another kind.
    """
    known = {name: foreign.arguments[name] for name in _SETUP if name in foreign.arguments}
    if known:
        precision = next((name for name in ("bf16", "fp16") if foreign.arguments.get(name)), "fp32")
        known |= {"world_size": foreign.world_size, "precision": precision}
    tokens = foreign.state.get("num_input_tokens_seen") or None
    rows = [row for row in foreign.state.get("log_history", ()) if row.get("step") == foreign.step]
    words = _worker(command, foreign.world_size) if command else None
    return Lineage(
        step=foreign.step,
        kind="kept",
        schedule=schedule,
        last_step=schedule.total_steps,
        intent="adopt",
        parent=Parent(checkpoint=os.path.relpath(foreign.path.resolve(), run.resolve()), step=foreign.step),
        group=run.resolve().name,
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        peak_lrs=foreign.peak_lrs,
        losses={name: loss for row in rows for name, loss in losses_of(row).items()},
        setup=known,
        settings={"tokens_per_step": tokens_per_step} if tokens_per_step else {},
        skipped_updates=foreign.skipped,
        command=capture_command(foreign.world_size, argv=words) if words else None,
    )


def unknown_facts(foreign: Foreign, record: Lineage) -> list[str]:
    """What no checkpoint tells about its run, in words."""
    facts = ["the training data: see to it that it is the same, in the same order"]
    if not foreign.arguments:
        facts.append("batch, accumulation, seed and precision (no training_args.bin): they have to be the same too")
    if not any(foreign.logged):
        facts.append("the lrs before this step (none was logged): that the schedule is right is your word")
    if record.tokens_per_step is None:
        facts.append("tokens of an update: budgets in tokens need --tokens-per-step")
    if record.command is None:
        facts.append("the command: `hf-wsd decay` needs it, after --")
    return facts


def write(foreign: Foreign, record: Lineage, run: Path) -> None:
    """Make the run: the checkpoint, its copy that is kept for good, and the history that was logged."""
    from hf_wsd.foreign import write_scheduler

    kept = run / FORK_POINTS / f"checkpoint-{record.step}"
    new = kept.with_name(f".{kept.name}.adopted")
    new.parent.mkdir(parents=True, exist_ok=True)
    link_checkpoint(foreign.path, new)
    (new / "scheduler.pt").unlink()  # a link: written in place it would be the user's own file
    write_scheduler(new / "scheduler.pt", record)
    record.write(new)
    new.replace(kept)
    link_checkpoint(kept, run / kept.name)
    if max((row["step"] for row in read_history(run)), default=0) < record.step:
        rows = [_row(row, record) for row in foreign.state.get("log_history", ()) if isinstance(row.get("step"), int)]
        write_atomically(run / HISTORY, "".join(to_json(row) + "\n" for row in rows))


def _row(logged: Mapping[str, Any], record: Lineage) -> dict[str, Any]:
    numbers = {name: value for name, value in logged.items() if isinstance(value, (int, float))}
    return numbers | {"phase": record.schedule.phase(max(logged["step"] - 1, 0)).value}


def _refuse_decay(foreign: Foreign, schedule: Schedule) -> None:
    """Refuse a checkpoint from which neither a trunk nor a decay can leave."""
    step = foreign.step
    if schedule.phase(max(step - 1, 0)) is Phase.DECAY and schedule.phase(step) is Phase.DECAY:
        start = max((at for at, kind in schedule.checkpoint_steps().items() if kind == "pre-decay" and at < step))
        raise ForkError(
            f"{foreign.path} is in the decay of '{schedule}', which starts at step {start}: no trunk can go on from "
            "it. Adopt a checkpoint from before"
        )


def _refuse_run(run: Path, record: Lineage) -> None:
    """Refuse a folder in which another run is, or this checkpoint."""
    saved = saved_checkpoints(run)
    if record.step in saved:
        raise RunError(f"{run} has a checkpoint at step {record.step} already: give another --into")
    if not any((path / RECORD).exists() for path in saved.values()):
        if saved:
            raise RunError(f"{run} holds checkpoints without records: give a new folder --into which this one goes")
        return
    there = read_run(run).latest
    if there.schedule != record.schedule or there.peak_lrs != record.peak_lrs:
        raise RunError(
            f"{run} is another run: '{there.schedule}' at peak lr {there.peak_lrs}, not '{record.schedule}' at "
            f"{record.peak_lrs}. Give another --into"
        )


def _worker(words: Sequence[str], world_size: int) -> list[str]:
    """What follows the interpreter in the command of one process."""
    program = Path(words[0]).name
    argv = list(words[1:] if re.fullmatch(r"python[\d.]*", program) else words)
    starts_others = program in ("accelerate", "torchrun", "deepspeed") or argv[:2] in (
        ["-m", "torch.distributed.run"],
        ["-m", "accelerate.commands.launch"],
    )
    if starts_others or not argv or not (argv[0] == "-m" or argv[0].endswith(".py")):
        raise RunError(
            f"'{' '.join(words)}' is not what one process runs: write -- python -m hf_wsd train.py ... `hf-wsd decay` "
            f"starts {world_size} of them; --launcher there starts them another way"
        )
    for flag, value in pairwise(argv):
        if flag == "--lr_scheduler_type" and value not in NAMES:
            raise SettingsError(f"the trunk goes on with ours: --lr_scheduler_type wsd, not {value}")
    return argv
