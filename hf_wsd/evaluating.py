"""The losses of a model by a command of the user's, such as lm-eval; runs of the recipes bring one with them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_wsd.demo import recipes_folder
from hf_wsd.errors import RunError
from hf_wsd.lineage import Command

MODEL, OUTPUT = "{model}", "{output}"


def recipe_evaluation(command: Command | None) -> str:
    """The evaluation command of a run of the recipes; "" of another run.

    >>> recipe_evaluation(None)
    ''
    """
    script = next((word for word in command.argv if word.endswith(".py")), "") if command else ""
    with suppress(RunError):  # no recipes here
        folder = recipes_folder().resolve()
        if command and script and (Path(command.cwd) / script).resolve().parent == folder:
            return shlex.join([sys.executable, str(folder / "evaluate_model.py"), MODEL])
    return ""


def read_evaluation(text: str) -> list[str]:
    """The words of an evaluation command, as a shell would split them.

    Raises:
        RunError: it is no command line, or does not say where the model goes.

    >>> read_evaluation("lm_eval --model_args pretrained={model} --tasks piqa --output_path {output}")[2]
    'pretrained={model}'
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RunError(f"--eval-command {text!r} is no command line: {error}") from None
    if not any(MODEL in word for word in words):
        raise RunError(f"--eval-command {text!r} does not say where the model's folder goes: write {MODEL} there")
    return words


def run_evaluation(text: str, model: Path) -> dict[str, Any]:
    """What an evaluation command says about a model.

    Args:
        text: the command. `{model}` becomes the model's folder; where it has `{output}`, this becomes an empty folder,
            in which the newest JSON file is read (lm-eval's --output_path); else the last line of stdout that is JSON.
        model: the model's folder.

    Raises:
        RunError: the command failed, or wrote no JSON table.

    >>> run_evaluation("echo '{\\"loss\\": 3.5}' {model}", Path("RUN"))
    Traceback (most recent call last):
        ...
    hf_wsd.errors.RunError: the evaluation of RUN wrote no JSON table: echo '{"loss": 3.5}' RUN
    """
    with TemporaryDirectory(prefix="hf_wsd-evaluation-") as output:
        words = [word.replace(MODEL, str(model)).replace(OUTPUT, output) for word in read_evaluation(text)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RunError(f"the evaluation of {model} cannot be started: {error}") from error
        if done.returncode != 0:
            tail = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
            raise RunError(f"the evaluation of {model} failed (exit {done.returncode}): {shlex.join(words)}\n{tail}")
        files = sorted(Path(output).rglob("*.json"), key=lambda file: file.stat().st_mtime)
        texts = [files[-1].read_text()] if files else [done.stdout, *reversed(done.stdout.splitlines())]
    for found in texts:
        with suppress(ValueError):
            if isinstance(table := json.loads(found), dict):
                return table
    raise RunError(f"the evaluation of {model} wrote no JSON table: {shlex.join(words)}")


def losses_in(table: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation's table: those at its top, or of each task where it has `results` by task (lm-eval).

    Counts and names are left out: whole numbers, but for those that are called a loss, a perplexity or an accuracy.

    >>> losses_in({"model": "RUN", "loss": 3.5, "blocks": 64})
    {'loss': 3.5}
    >>> losses_in({"loss": 3, "step": 100})
    {'loss': 3.0}
    >>> losses_in({"date": 1.7e9, "results": {"piqa": {"alias": "piqa", "acc,none": 0.6}}})
    {'piqa acc,none': 0.6}
    """
    tasks = table.get("results")
    if not isinstance(tasks, dict):
        numbers = {name: value for name, value in table.items() if type(value) in (int, float)}
        return {name: float(value) for name, value in numbers.items() if type(value) is float or _is_loss(name)}
    found = {task: losses_in(of) for task, of in tasks.items() if isinstance(of, dict)}
    return {f"{task} {name}": value for task, of in found.items() for name, value in of.items()}


def _is_loss(name: str) -> bool:
    return any(word in name for word in ("loss", "perplexity", "ppl", "acc"))
