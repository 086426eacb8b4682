"""`hf-wsd merge`: a preview of a decay out of the trunk's checkpoints, evaluated beside the trunk and the branch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_wsd.family import Run, read_run
from hf_wsd.history import to_json, write_atomically
from hf_wsd.lengths import show_tokens
from hf_wsd.shapes import shape_names

if TYPE_CHECKING:
    from hf_wsd.merge import Merge


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --output_dir of the trunk.", show_default=False)],
    at: Annotated[list[str], typer.Option(help="Where the decay would end: steps, tokens.", show_default=False)],
    decay_steps: Annotated[str | None, typer.Option(help="Its length: the window of the checkpoints.")] = None,
    decay_fraction: Annotated[float | None, typer.Option(help="Decay steps / steps of the model instead.")] = None,
    decay_type: Annotated[str | None, typer.Option(help=f"Shape: {shape_names()}.")] = None,
    decay_params: Annotated[list[str] | None, typer.Option(metavar="NAME=X", help="Parameters of the shape.")] = None,
    min_lr_ratio: Annotated[float | None, typer.Option(help="Lr at the end / peak lr.")] = None,
    eval_command: Annotated[
        str | None, typer.Option(help="Prints losses of the model in {model} as JSON; recipes: their own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be merged, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Merge checkpoints of RUN's stable phase as a preview of a decay, without training; the model is no decayed one.

    What is not given is as in `hf-wsd decay`. Repeating the command does what is missing.
    """
    from hf_wsd.casts import cast
    from hf_wsd.merge import is_merged, plan_merge, write_merge

    trunk, told = read_run(run), []
    for end in at:
        planned = plan_merge(
            trunk,
            end,
            num_decay_steps=cast("num_decay_steps", decay_steps),
            decay_fraction=decay_fraction,
            decay_type=decay_type,
            decay_params=cast("decay_params", decay_params),
            min_lr_ratio=min_lr_ratio,
        )
        print(_show(planned, trunk.latest.tokens_per_step), file=sys.stderr)
        if dry_run:
            told.append(planned.to_dict())
            continue
        if not is_merged(planned):
            write_merge(planned)
        told.append(evaluate_merge(planned, trunk, eval_command))
        if not as_json:
            print(merge_text(planned, told[-1]))
    if as_json:
        print(json.dumps(told, indent=1))
    if not dry_run:
        print(f"next: hf-wsd report {run}", file=sys.stderr)


def _show(merge: Merge, tokens_per_step: int | None) -> str:
    checkpoints, decay = ", ".join(map(str, merge.checkpoints)), merge.decay
    tokens = show_tokens(decay.end * tokens_per_step if tokens_per_step else None)
    return (
        f"{merge.folder.name}: preview of a {merge.shape.shape} decay from step {decay.fork} to {decay.end} ({tokens} "
        f"tokens), checkpoints {checkpoints}"
    )


def evaluate_merge(merge: Merge, trunk: Run, eval_command: str | None = None) -> dict[str, Any]:
    """What `merge.json` says, with the losses of the merge, of the trunk's last merged checkpoint and of the branch.

    Args:
        merge: a merge that has been written.
        trunk: its run.
        eval_command: see `hf_wsd.evaluating.run_evaluation`; without one, runs of the recipes are evaluated as they
            evaluate themselves, and of others only the losses in their records are known.

    Raises:
        RunError: the evaluation failed; the merged model stays.
    """
    from hf_wsd.evaluating import losses_in, read_evaluation, recipe_evaluation, run_evaluation

    file, branch = merge.folder / "merge.json", _branch_of(merge, trunk)
    told = json.loads(file.read_text())
    command = eval_command or recipe_evaluation(trunk.latest.command)
    last = max(merge.checkpoints)
    models: dict[str, Path | None] = {
        "losses": merge.folder,
        "trunk_losses": merge.checkpoints[last],
        "branch_losses": branch.checkpoints.get(merge.decay.end) if branch else None,
    }
    known = {name: told[name] for name in models if told.get(name) and told.get("evaluation") == command}
    if not eval_command:  # else its own alone: another set, or other numbers
        recorded = {"trunk_losses": trunk.losses_at(last)}
        recorded |= {"branch_losses": branch.losses_at(merge.decay.end)} if branch else {}
        known |= {name: dict(losses) for name, losses in recorded.items() if losses}
    if command:
        read_evaluation(command)
    for name, model in models.items():
        if model is not None and command and not known.get(name):
            known[name] = losses_in(run_evaluation(command, model))
    told |= {name: known.get(name, {}) for name in models}
    told |= {"branch": branch.path.name if branch else None, "trunk_step": last, "evaluation": command}
    write_atomically(file, to_json(told, indent=1) + "\n")
    return dict(told)


def _branch_of(merge: Merge, trunk: Run) -> Run | None:
    """The finished branch with the same decay and nothing else changed."""
    for branch in trunk.branches:
        own = branch.identity.schedule.segments[-1]
        same = (own.steps, own.shape, own.shape_params, own.end) == (
            *(merge.shape.steps, merge.shape.shape, merge.shape.shape_params, merge.shape.end),
        )
        if same and branch.finished and not branch.changed and branch.identity.last_step == merge.decay.end:
            return branch
    return None


def merge_text(merge: Merge, told: Mapping[str, Any]) -> str:
    """The losses side by side, for the terminal; where nobody knows how to evaluate, what to type."""
    place = f"a preview, not a decayed model: {merge.folder}"
    if not told["losses"] and told["evaluation"]:
        return f"{place}\nnot evaluated, because there is no loss in what this printed: {told['evaluation']}"
    if not told["losses"]:
        return (
            f"{place}\nnot evaluated, because nobody knows how for this script: give --eval-command 'python my_eval.py "
            "{model}', which prints JSON"
        )
    rows = {
        f"trunk at step {told['trunk_step']}": told["trunk_losses"],
        "merge preview": told["losses"],
        f"branch {told['branch'] or '(none with this decay)'}": told["branch_losses"],
    }
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'  '.join(f'{name:>14}' for name in told['losses'])}"]
    for row, losses in rows.items():
        cells = (f"{losses[name]:14.4f}" if name in losses else f"{'-':>14}" for name in told["losses"])
        lines.append(f"{row:{width}}  {'  '.join(cells)}")
    return "\n".join([*lines, place])
