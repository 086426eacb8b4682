"""What a run's command tells of its data and its model, as far as it can be shown to others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from hf_wsd.demo import recipes_folder
from hf_wsd.errors import RunError
from hf_wsd.lineage import Command
from hf_wsd.scrubbing import clean, last_part

EMBEDDED = "the corpus embedded in hf_wsd"
SHAPING = (  # flags that shape a model, and that a record does not hold
    *("preset", "config_name", "config_overrides", "model_name_or_path"),
    *("dataset_name", "dataset_config_name", "train_file", "validation_file", "streaming", "text_column"),
    *("block_size", "validation_percent", "tokenizer_name", "max_eval_blocks"),
    *("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "torch_compile"),
)
MODELS = ("config_name", "model_name_or_path", "tokenizer_name")
PLACES = (*MODELS, "dataset_name", "train_file", "validation_file")
_FILE = re.compile(r".*\.(txt|jsonl?|csv|parquet|ya?ml|arrow|gz|zst)", re.IGNORECASE)


def flags_of(command: Command | None) -> dict[str, str]:
    """The flags of a run by name, as its argument files and its command line give them; the last one counts."""
    found: dict[str, str] = {}
    if command is None:
        return found
    for text in command.files.values():
        with suppress(yaml.YAMLError):
            table = yaml.safe_load(text)
            pairs = table.items() if isinstance(table, Mapping) else ()
            found |= {str(key): str(value) for key, value in pairs if isinstance(value, (str, int, float))}
    name = None
    for word in command.argv:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = value
        elif name is not None:
            found[name] = f"{found[name]} {word}".strip()
    return found


def is_recipe(command: Command | None) -> bool:
    """Whether a run was started with a recipe of this installation: the only scripts whose data are known."""
    if command is None:
        return False
    with suppress(RunError):
        recipes = {str(file) for file in recipes_folder().resolve().glob("pretrain*.py")}
        return any(str((Path(command.cwd) / word).resolve()) in recipes for word in command.argv if ".py" in word)
    return False


def hub_id(name: str | None, command: Command | None) -> str | None:
    """The name if it is one of the hub: a local folder or file is none, nor is what nobody can tell from one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not name or command is None or _FILE.fullmatch(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    folder = Path(command.cwd)
    return name if folder.is_dir() and not (folder / name).exists() else None


def data_of(command: Command | None) -> tuple[str | None, str | None]:
    """The training data for people, and their name on the hub; None for what nobody knows."""
    flags = flags_of(command)
    if name := flags.get("dataset_name"):
        config = flags.get("dataset_config_name")
        return (hub_id(name, command) or last_part(name)) + (f" ({config})" if config else ""), hub_id(name, command)
    if file := flags.get("train_file"):
        return last_part(file), None
    return (EMBEDDED if is_recipe(command) else None), None


def evaluation_of(command: Command | None) -> str:
    """What the model was evaluated on, as far as it is known."""
    if file := flags_of(command).get("validation_file"):
        return last_part(file)
    data, _ = data_of(command)
    return f"{data}, held-out part" if data and is_recipe(command) else "the evaluation set of the training run"


def showable(command: Command | None) -> dict[str, str]:
    """The flags that shape a model as others can repeat them: printable, files and folders by their last part."""
    flags, shown = flags_of(command), dict[str, str]()
    for name in SHAPING:
        if name in flags and flags[name].isprintable():
            value = flags[name]
            shown[name] = (hub_id(value, command) or last_part(value)) if name in PLACES else clean(value)
    return shown
