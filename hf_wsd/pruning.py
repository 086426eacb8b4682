"""`hf-wsd prune`: frees the disk of the checkpoints and branches that the user names, and of nothing else.

What goes is first renamed into `_pruned/`, so that nobody sees half a checkpoint, and then deleted; what a kill leaves
there goes with the next prune.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hf_wsd.checkpoint import check_checkpoint, newest_whole, optimizer_files, step_in_name
from hf_wsd.disk import freed_bytes, show_bytes
from hf_wsd.errors import CheckpointError, RunError, SettingsError, unknown
from hf_wsd.family import Run, read_run
from hf_wsd.lock import locked
from hf_wsd.retention import Stored, left_at, stored

TRASH = "_pruned"  # the leading underscore keeps it out of Trainer's uploads and rotation


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What goes together.

    Args:
        name: what it is, in words.
        paths: what is deleted.
        trash: the folder into which it is renamed before.
        runs: folders in which nobody may be training.
        needed: for what it is needed, if it goes with --force alone.
    """

    name: str
    paths: tuple[Path, ...]
    trash: Path
    runs: tuple[Path, ...]
    needed: str = ""


def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A trunk, or the folder of a branch.", show_default=False)],
    steps: Annotated[list[int] | None, typer.Option(help="RUN's checkpoints at these steps.")] = None,
    kept: Annotated[bool, typer.Option("--kept", help="RUN's checkpoints of --keep-every.")] = False,
    branch: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A branch of RUN, all of it.")] = None,
    optimizer: Annotated[
        bool, typer.Option("--optimizer", help="Optimizer state of decayed models; weights and record stay.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what branches have left or a resume needs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go, and delete nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Delete what you name of RUN: checkpoints, branches, or the optimizer state of decayed models."""
    family = read_run(run)
    if not (steps or kept or branch or optimizer):
        raise SettingsError(f"say what may go: --steps, --kept, --branch or --optimizer. {_what_there_is(family)}")
    if optimizer and (steps or kept or branch):
        raise SettingsError(
            "--optimizer leaves weights and record of all decayed models, the others delete whole folders: give "
            "--optimizer by itself"
        )
    named = [*of_steps(family, steps or ()), *of_branches(family, branch or ())]
    if (needed := [piece for piece in named if piece.needed]) and not force:
        told = "; ".join(f"{piece.name} is needed ({piece.needed})" for piece in needed)
        raise RunError(f"{told}. Nothing was deleted; with --force it is")
    found = [*(of_keep_every(family) if kept else ()), *(of_optimizers(family) if optimizer else ())]
    stays = [piece for piece in found if piece.needed and not force]
    goes = list({piece.name: piece for piece in [*named, *found] if piece not in stays}.values())

    left_over = [trash for member in family.walk() if (trash := member.path / TRASH).is_dir()]
    rows = [{"name": piece.name, "bytes": freed_bytes(*piece.paths)} for piece in goes]
    freed = freed_bytes(*left_over, *(path for piece in goes for path in piece.paths))
    if not dry_run:
        delete(goes, left_over)
    for piece in stays:
        print(f"{piece.name} stays ({piece.needed}); with --force it goes", file=sys.stderr)
    if as_json:
        kept_back = [{"name": piece.name, "needed": piece.needed} for piece in stays]
        print(json.dumps({"pruned": rows, "stays": kept_back, "freed_bytes": freed, "dry_run": dry_run}, indent=1))
        return
    for row in rows:
        print(f"{row['name']}, {show_bytes(row['bytes'])}")
    print(f"{'would free' if dry_run else 'freed'} {show_bytes(freed)}")


def delete(pieces: Sequence[Piece], left_over: Sequence[Path] = ()) -> None:
    """Delete pieces, and what an earlier prune that was killed has left.

    Raises:
        RunError: somebody trains in their run, or the file system refuses.
    """
    with ExitStack() as locks:
        for run in dict.fromkeys(run for piece in pieces for run in piece.runs):
            locks.enter_context(locked(run))
        try:
            for trash in left_over:
                shutil.rmtree(trash)
            for number, (path, trash) in enumerate((path, piece.trash) for piece in pieces for path in piece.paths):
                trash.mkdir(exist_ok=True)
                path.rename(trash / f"{number}-{path.name}")
            for trash in {piece.trash for piece in pieces}:
                shutil.rmtree(trash)
        except OSError as error:
            raise RunError(f"not all could be deleted ({error}): repeat the command") from error


def of_steps(run: Run, steps: Sequence[int]) -> Iterator[Piece]:
    """The checkpoints of a run at some steps.

    Raises:
        CheckpointError: there is none at a step.
    """
    there = {checkpoint.step: checkpoint for checkpoint in stored(run) if checkpoint.folders}
    for step in steps:
        if step not in there and not _was_killed(run):
            raise CheckpointError(f"{run.path} has no checkpoint at step {step}. {_what_there_is(run)}")
    yield from _whole(run, [there[step] for step in steps if step in there])


def of_keep_every(run: Run) -> Iterator[Piece]:
    """The checkpoints of a run that are there for `keep_every` alone."""
    yield from _whole(run, [checkpoint for checkpoint in stored(run) if checkpoint.kind == "kept"])


def of_branches(run: Run, names: Sequence[str]) -> Iterator[Piece]:
    """The branches of a run with some names.

    Raises:
        RunError: the run has no branch of a name.
    """
    branches = {branch.path.name: branch for branch in run.branches}
    for name in names:
        if name not in branches and not _was_killed(run):
            raise RunError(f"{run.path}: {unknown('branch', name, branches)}")
    for branch in (branches[name] for name in names if name in branches):
        needed = [f"{other.path.name} has left it" for other in branch.branches]
        if branch.checkpoints and not branch.finished:
            needed.append(
                f"it is at step {branch.steps_done} of {branch.identity.last_step}, and would go on from there"
            )
        yield Piece(
            name=f"branch {branch.path.name}",
            paths=(branch.path,),
            trash=run.path / TRASH,
            runs=tuple(member.path for member in branch.walk()),
            needed=" and ".join(needed),
        )


def of_optimizers(run: Run) -> Iterator[Piece]:
    """The optimizer state of the decayed models of a run and its branches, where the weights are whole without it."""
    for member in run.walk():
        needs = _needs(member)
        for checkpoint in stored(member):
            files = tuple(file for folder in checkpoint.folders for file in optimizer_files(folder))
            if checkpoint.kind == "post-decay" and files and all(map(_is_model, checkpoint.folders)):
                yield Piece(
                    name=f"optimizer state of {checkpoint.folders[0].relative_to(run.path)}",
                    paths=files,
                    trash=member.path / TRASH,
                    runs=(member.path,),
                    needed=needs[checkpoint.step] if checkpoint.branches or not member.finished else "",
                )


def _whole(run: Run, checkpoints: Sequence[Stored]) -> Iterator[Piece]:
    """Checkpoints, both copies of each."""
    needs = _needs(run)
    for checkpoint in checkpoints:
        name = f"{checkpoint.folders[0].name} ({checkpoint.why})"
        needed = needs[checkpoint.step]
        yield Piece(name=name, paths=checkpoint.folders, trash=run.path / TRASH, runs=(run.path,), needed=needed)


def _needs(run: Run) -> Mapping[int, str]:
    """For what the checkpoints of a run are needed, by step."""
    needs: dict[int, list[str]] = defaultdict(list)
    for branch in run.branches:
        needs[left_at(branch)].append(f"{branch.path.name} has left it")
    newest = newest_whole(run.path)[0] or run.checkpoints.get(max(run.checkpoints, default=0))
    if newest is not None:
        what = "it is what a longer run goes on from" if run.finished else "the run goes on from it"
        needs[step_in_name(newest)].append(what)
        with suppress(OSError, ValueError, KeyError, TypeError):  # the best model may have no name
            best = json.loads((newest / "trainer_state.json").read_text())["best_model_checkpoint"]
            needs[step_in_name(Path(best))].append("it is the best model so far")
    return defaultdict(str, {step: " and ".join(whys) for step, whys in needs.items()})


def _is_model(checkpoint: Path) -> bool:
    try:
        return check_checkpoint(checkpoint, to_resume=False) > 0
    except CheckpointError:
        return False


def _was_killed(run: Run) -> bool:
    """Whether an earlier prune did not come to its end; it may have taken what is missing now."""
    return (run.path / TRASH).is_dir()


def _what_there_is(run: Run) -> str:
    checkpoints = ", ".join(map(str, run.checkpoints)) or "none"
    branches = ", ".join(branch.path.name for branch in run.branches) or "none"
    return f"Checkpoints: {checkpoints}. Branches: {branches}"
