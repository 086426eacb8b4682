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

_KEPT_VARIABLES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")  # HF_WSD_*: the record has them as settings
_SECRET_NAME = re.compile(  # not any token: eos_token and its like are settings
    r"^((push_to_)?hub|hf|huggingface|github|wandb|auth|access|api|bearer)?_?token$"
    r"|(api|access|secret|private|openai|wandb)_?key$|password$|passwd$|secret$"
)
_SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{16,}")
_YAML_PAIR = re.compile(r"""([\w-]+)["']?[ \t]*:[ \t]*("[^"]*"|'[^']*'|[^,}\s#]+)""")
_LARGEST_ARGUMENT_FILE = 64 * 1024  # bytes


def capture_command(world_size: int = 1) -> Command:
    """The `Command` of this process, secrets left out before anything is written."""
    argv = sys.orig_argv[1:]
    while argv and argv[0] == "-u":  # torchrun's own; a replay under torchrun gets it again
        argv = argv[1:]
    return Command(
        argv=scrub_arguments(argv),
        cwd=os.getcwd(),
        world_size=world_size,
        environment=_environment(os.environ),
        files=_argument_files(argv),
    )


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in sorted(env.items()) if name.startswith(_KEPT_VARIABLES) and not is_secret(name)
    }


def is_secret(name: str) -> bool:
    """Whether a flag, key or variable of that name holds a secret.

    >>> [is_secret(n) for n in ("--hub_token", "--eos_token", "WANDB_API_KEY", "--tokens-per-step", "--token")]
    [True, False, True, False, True]
    """
    return bool(_SECRET_NAME.search(name.lstrip("-").replace("-", "_").lower()))


def scrub_arguments(argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments without the flags that hold secrets.

    >>> scrub_arguments(["t.py", "--hub_token", "abc", "--lr", "1", "--token=x", "--note", "hf_aaaabbbbccccddddee"])
    ('t.py', '--lr', '1', '--note', '***')
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
        kept.append(_SECRET_VALUE.sub("***", arg))
    return tuple(kept)


def _argument_files(argv: Sequence[str]) -> dict[str, str]:
    """Texts of the argument files, without secrets; what is large or no table of arguments is data, and left out."""
    files = {}
    for path in (arg.partition("=")[2] if arg.startswith("--") else arg for arg in argv):
        try:
            if path.endswith((".json", ".yaml", ".yml")) and os.path.getsize(path) <= _LARGEST_ARGUMENT_FILE:
                text = Path(path).read_text()
                files[path] = _SECRET_VALUE.sub(
                    "***", _scrub_json(text) if path.endswith(".json") else _scrub_yaml(text)
                )
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
    return json.dumps(scrub(content), indent=1)


def _scrub_yaml(text: str) -> str:
    return _YAML_PAIR.sub(lambda pair: f"{pair[1]}: null" if is_secret(pair[1]) else pair[0], text)
