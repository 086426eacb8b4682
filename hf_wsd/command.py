"""How this process was started, in a form that can be kept: no secrets, argument files copied."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_wsd.lineage import Command

LAUNCHER_VARIABLES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")  # what `accelerate launch` tells its workers
_KEPT_VARIABLES = (  # HF_WSD_*: the record has them as settings
    *LAUNCHER_VARIABLES,
    # Where trackers keep a run: a group is one of a project.
    *("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_GROUP", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_DIR"),
    *("TENSORBOARD_LOGGING_DIR", "MLFLOW_EXPERIMENT_NAME", "COMET_PROJECT_NAME", "SWANLAB_PROJECT"),
)
_SECRET_NAME = re.compile(  # not any token: eos_token and its like are settings
    r"^token$|(^|_)(hub|hf|hugging_?face|github|gitlab|wandb|neptune|comet|auth|access|api|bearer|session)_?tokens?$"
    r"|(api|access|secret|private|openai|wandb)_?keys?$|passwords?$|passwd$|secrets?$"
)
SECRET_VALUE = re.compile(r"(?<![A-Za-z0-9])hf_(?=[A-Za-z]*\d)(?=[a-z\d]*[A-Z])[A-Za-z\d]{30,}")  # a hub token
BLANK = "hf_***"  # *** alone would be an alias in YAML
_WORD = re.compile(r"""([\w.-]+)(\\?["']?\s*[:=])?""")  # with what makes it a key
_YAML_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'"""
_YAML_PAIR = re.compile(rf"((?:- +)*)({_YAML_QUOTED}|[^\s\"'#[\]{{}},&*!|>%@`?][^#]*?)\s*:(?:\s+(.*))?$")
_YAML_SCALAR = re.compile(rf"(?:(?:{_YAML_QUOTED})\s*(?:#.*)?|[^\s\"'[\]{{}},&*!|>%@`?].*)?")
_YAML_ANCHOR = re.compile(r"(?:^|[\s[{,])[&*]\w", re.MULTILINE)
_LARGEST_ARGUMENT_FILE = 64 * 1024  # bytes


def capture_command(
    world_size: int = 1, length_flag: str = "max_steps", *, argv: Sequence[str] | None = None
) -> Command:
    """The `Command` of this process, secrets left out before anything is written; or that of other words.

    >>> command = capture_command(world_size=2)
    >>> command.world_size, command.cwd == os.getcwd(), "PATH" in command.environment
    (2, True, False)
    """
    argv = sys.orig_argv[1:] if argv is None else argv
    while argv and argv[0] == "-u":  # torchrun's own; a replay under torchrun gets it again
        argv = argv[1:]
    return Command(
        argv=scrub_arguments(argv),
        cwd=os.getcwd(),
        world_size=world_size,
        nodes=_nodes(os.environ),
        environment=_environment(os.environ),
        files=_argument_files(argv),
        length_flag=length_flag,
    )


def _nodes(env: Mapping[str, str]) -> int:
    """Machines of the job, as torchrun (also under `accelerate launch`) and DeepSpeed's launcher tell each worker."""
    told = env.get("GROUP_WORLD_SIZE") or env.get("CROSS_SIZE") or ""
    return int(told) if told.isdecimal() else 1


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in sorted(env.items()) if name.startswith(_KEPT_VARIABLES) and not is_secret(name)
    }


def is_secret(name: str) -> bool:
    """Whether a flag, key or variable of that name holds a secret.

    >>> [is_secret(n) for n in ("--hub_token", "--eos_token", "WANDB_API_KEY", "--tokens-per-step", "--token")]
    [True, False, True, False, True]
    """
    return bool(_SECRET_NAME.search(re.sub(r"\W+", "_", name).strip("_").lower()))


def scrub_arguments(argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments without the flags that hold secrets.

    >>> scrub_arguments(["t.py", "--hub_token", "abc", "--lr", "1", "--token=x", "--note", "hf_" + "aB1" * 11])
    ('t.py', '--lr', '1', '--note', 'hf_***')
    """
    kept: list[str] = []
    skip_value = False
    for arg in argv:
        name, given, _ = arg.partition("=")
        if arg.startswith("--"):
            skip_value = is_secret(name) and not given
            if is_secret(name):
                continue
        elif skip_value:
            skip_value = False
            continue
        kept.append(SECRET_VALUE.sub(BLANK, arg))
    return tuple(kept)


def _argument_files(argv: Sequence[str]) -> dict[str, str]:
    """Texts of the argument files, without secrets; left out: data (large, or no table), and what may keep a secret."""
    files = {}
    for path in (arg.partition("=")[2] if arg.startswith("--") else arg for arg in argv):
        try:
            if path.endswith((".json", ".yaml", ".yml")) and os.path.getsize(path) <= _LARGEST_ARGUMENT_FILE:
                text = Path(path).read_text(encoding="utf-8")
                text = _scrub_json(text) if path.endswith(".json") else _scrub_yaml(text)
                files[path] = SECRET_VALUE.sub(BLANK, text)
        except (OSError, ValueError):
            continue
    return files


def _scrub_json(text: str) -> str:
    def scrub(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: scrub(item) for key, item in value.items() if not is_secret(key)}
        return [scrub(item) for item in value] if isinstance(value, list) else value

    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a table of arguments")
    text = json.dumps(scrub(content), indent=1)
    if _secrets_named(text):
        raise ValueError("a text in it names a secret")
    return text


def _secrets_named(text: str) -> int:
    """How many flags and keys of secrets a text has."""
    return sum(is_secret(word) for word, as_key in _WORD.findall(text) if as_key or word.startswith("--"))


def _scrub_yaml(text: str) -> str:
    """The text with null for each secret, read line by line: the standard library has no parser.

    Raises:
        ValueError: the text names a secret, and is more than pairs and lists of values that end on their line.
    """
    if not _secrets_named(text):
        return text
    if _YAML_ANCHOR.search(text):
        raise ValueError("an alias may repeat a secret")
    kept: list[str] = []
    secrets, column = 0, None  # column: of the key whose value is being dropped
    for line in text.splitlines():
        content = line.lstrip()
        indent = len(line) - len(content)
        if not content or content.startswith("#"):  # a comment may be a secret that was switched off
            continue
        if column is not None and (indent > column or (indent == column and re.match(r"-(\s|$)", content))):
            continue
        column = None
        pair = _YAML_PAIR.match(content)
        value = (pair[3] or "") if pair else re.sub(r"^(- +)+", "", content)
        if pair and is_secret(pair[2]):
            secrets, column = secrets + 1, indent + len(pair[1])
            line = f"{line[:column]}{pair[2]}: null"
            value = re.sub(r"^(!\S*\s*)*([|>].*)?", "", value)  # without tag and block header
        if not _ends_on_its_line(value.rstrip()):
            raise ValueError(f"not plain: {line}")
        kept.append(line)
    scrubbed = "\n".join(kept) + "\n"
    if _secrets_named(scrubbed) != secrets:
        raise ValueError("a secret is named elsewhere than in a key")
    return scrubbed


def _ends_on_its_line(value: str) -> bool:
    """Whether a YAML value is a scalar or a collection that is closed on the same line."""
    if value[:1] not in ("[", "{"):
        return bool(_YAML_SCALAR.fullmatch(value))
    bare = re.sub(_YAML_QUOTED, "", value)
    pairs = all(bare.count(left) == bare.count(right) for left, right in ("[]", "{}"))
    return pairs and bare[-1] in "]}" and not set(bare) & set("\"'#")
