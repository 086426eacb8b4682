"""A family as a tree for the terminal: what is kept and why, and how far each branch has come."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from rich.tree import Tree

from hf_wsd.errors import ScheduleError
from hf_wsd.family import Run
from hf_wsd.lengths import show_tokens
from hf_wsd.stock import stock_flags


def render_tree(run: Run) -> Tree:
    """The trunk with its kept checkpoints and, below its fork point, each branch with its state and losses."""
    schedule, done = run.identity.schedule, run.steps_done
    phase = schedule.phase(max(done - 1, 0)).value
    tree = Tree(Text(f"{run.path.resolve().name}: {_describe(run, done)}, {phase}\n{schedule}"))
    branches = [(fork, end, branch) for branch in run.walk() if branch is not run for fork, end in branch.decays()]
    kept = {step for step, record in run.records.items() if record.kind != "periodic"}
    for step in sorted(kept | {fork for fork, _, _ in branches}):
        kind = run.records[step].kind if step in run.records else "checkpoint is gone"
        node = tree.add(Text(f"{_describe(run, step)}, {kind}"))
        for branch, end in ((branch, end) for fork, end, branch in branches if fork == step):
            node.add(Text(f"{branch.path.name}: {_state(branch, step, end)}"))
    return tree


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
    try:
        flags = stock_flags(record.schedule, last_step=record.last_step or newest, start=newest)
    except ScheduleError as error:
        return {"checkpoint": path, "reason": f"this run cannot go on: {error}"}
    return {"checkpoint": path, "flags": [*flags, "--resume_from_checkpoint", path]}


def _state(branch: Run, fork: int, end: int) -> str:
    if branch.has_saved(end):
        return f"finished, {_describe(branch, end)}"
    done = branch.steps_done
    return f"{'planned' if done == fork else f'at step {done}'}, ends at step {end}"


def _describe(run: Run, step: int) -> str:
    """Step, tokens and losses, as far as they are known."""
    tokens, losses = run.tokens_at(step), run.losses_at(step)
    parts = [f"step {step}"]
    parts += [f"{show_tokens(tokens)} tokens"] if tokens is not None else []
    parts += [f"{name.replace('_', ' ')} {losses[name]:.3f}" for name in ("loss", "bits_per_byte") if name in losses]
    return ", ".join(parts)
