"""A family as a tree for the terminal: what is kept and why, and how far each branch has come."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from rich.tree import Tree

from hf_wsd.checkpoint import weights_alone
from hf_wsd.disk import show_bytes, used_bytes
from hf_wsd.errors import ScheduleError
from hf_wsd.family import Run
from hf_wsd.lengths import show_spans, show_tokens
from hf_wsd.lineage import BRANCHES
from hf_wsd.retention import Stored, stored
from hf_wsd.sameness import describe
from hf_wsd.stock import stock_flags


def render_tree(run: Run) -> Tree:
    """The tree of a family, and what all of it takes on disk."""
    tree = family_tree(run)
    branches = used_bytes(run.path / BRANCHES)
    tree.add(Text(f"on disk: {show_bytes(used_bytes(run.path))}, branches {show_bytes(branches)} of it"))
    return tree


def family_tree(run: Run) -> Tree:
    """The trunk with its kept checkpoints, why and at what cost in disk, and below its fork point each branch."""
    schedule, done = run.identity.schedule, run.steps_done
    phase = schedule.phase(max(done - 1, 0)).value
    tree = Tree(Text(f"{run.path.resolve().name}: {_describe(run, done)}, {phase}{_differences(run)}\n{schedule}"))
    checkpoints = list(stored(run))
    for checkpoint in checkpoints:
        if checkpoint.for_good or checkpoint.branches:
            _grow(tree, run, checkpoint)
    if periodic := [checkpoint for checkpoint in checkpoints if not checkpoint.for_good and not checkpoint.branches]:
        steps = ", ".join(str(checkpoint.step) for checkpoint in periodic)
        size = used_bytes(*(folder for checkpoint in periodic for folder in checkpoint.folders))
        tree.add(Text(f"periodic, until newer ones come: step {steps}, {show_bytes(size)}"))
    return tree


def _grow(tree: Tree, run: Run, checkpoint: Stored) -> None:
    """Add a checkpoint, the branches that left it, and what in turn has left those."""
    size = f", {show_bytes(checkpoint.bytes)}" if checkpoint.folders else ""
    node = tree.add(Text(f"{_describe(run, checkpoint.step)}: {checkpoint.why}{size}"))
    for branch in checkpoint.branches:
        size = show_bytes(used_bytes(branch.path))
        state = ", ".join(filter(None, [_state(branch, checkpoint.step), size, branch.changed]))
        leaf = node.add(Text(f"{branch.path.name}: {state}{_differences(branch)}"))
        for its_own in stored(branch):
            if its_own.branches:
                _grow(leaf, branch, its_own)


def disk_dict(run: Run) -> dict[str, Any]:
    """The checkpoints of a family with what they take on disk, and what all of it takes, JSON-ready."""
    checkpoints = [
        {"run": member.path.relative_to(run.path).as_posix()} | checkpoint.to_dict(run.path)
        for member in run.walk()
        for checkpoint in stored(member)
    ]
    return {"checkpoints": checkpoints, "disk_bytes": used_bytes(run.path)}


def stock_resume(run: Run) -> dict[str, Any]:
    """How the newest checkpoint is used where hf_wsd is not installed: the `checkpoint`, then `flags` or a `reason`.

    Empty for a run without a Trainer: its script has flags of its own.
    """
    newest = max(run.checkpoints.keys() & run.records.keys(), default=None)
    if newest is None or (run.checkpoints[newest] / "random_states_0.pkl").exists():
        return {}
    path, record = str(run.checkpoints[newest]), run.records[newest]
    if run.finished and record.schedule.total_steps is not None:
        return {"checkpoint": path, "reason": f"the run is finished: from_pretrained({path!r}) loads its model"}
    if record.moved_data:
        spans = show_spans(record.moved_data)
        return {"checkpoint": path, "reason": f"transformers cannot pass over the batches of updates {spans}"}
    try:
        flags = stock_flags(record.schedule, last_step=record.last_step or newest, start=newest)
    except ScheduleError as error:
        return {"checkpoint": path, "reason": f"this run cannot go on: {error}"}
    return {"checkpoint": path, "flags": [*flags, "--resume_from_checkpoint", path]}


def _state(branch: Run, fork: int) -> str:
    end = branch.identity.schedule.total_steps or branch.identity.last_step
    if end is not None and branch.has_saved(end):
        alone = end in branch.checkpoints and weights_alone(branch.checkpoints[end])
        return f"finished, {_describe(branch, end)}{', weights alone' if alone else ''}"
    done = branch.steps_done
    return f"{'planned' if done == fork else f'at step {done}'}, ends at step {end}"


def _differences(run: Run) -> str:
    """What is not as in the run of the checkpoint that it goes on from, after a semicolon; nothing where all is."""
    words = describe(run.latest) if run.records else ""
    return f"; {words}" if words else ""


def _describe(run: Run, step: int) -> str:
    """Step, tokens and losses, as far as they are known."""
    tokens, losses = run.tokens_at(step), run.losses_at(step)
    parts = [f"step {step}"]
    parts += [f"{show_tokens(tokens)} tokens"] if tokens is not None else []
    parts += [f"{name.replace('_', ' ')} {losses[name]:.3f}" for name in ("loss", "bits_per_byte") if name in losses]
    return ", ".join(parts)
