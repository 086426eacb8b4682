"""How this process was started, in a form that can be kept: no secrets, argument files copied."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_wsd.lineage import Command

_KEPT_VARIABLES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")  # HF_WSD_*: the record has them as settings
_SECRET_NAME = re.compile(
    r"^(hub|hf|auth|access|api|push_to_hub)?_?token$|(api|access|secret|private)_?key$|password$|passwd$|secret$"
)
_SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{16,}")


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
        files={
            arg: _scrub_file(arg) for arg in argv if arg.endswith((".json", ".yaml", ".yml")) and Path(arg).is_file()
        },
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


def _scrub_file(path: str) -> str:
    text = Path(path).read_text()
    if path.endswith(".json"):
        content = json.loads(text)
        if isinstance(content, dict):
            text = json.dumps({key: value for key, value in content.items() if not is_secret(key)}, indent=1)
    else:
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if not is_secret(line.partition(":")[0].strip()))
    return _SECRET_VALUE.sub("***", text)
