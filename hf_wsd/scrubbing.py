"""What must not leave this machine - paths, user names, tokens: taken out of what is published, then looked for."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from getpass import getuser
from pathlib import Path
from typing import Any

from hf_wsd.command import BLANK, SECRET_VALUE, is_secret

_PART = r"""[^\s/\\'"`:,;|<>()\[\]{}]+"""
_PATH = re.compile(rf"(?<![\w.:/\\~<$}}*)-])(?:file://)?(?:~|[A-Za-z]:)?(?:[/\\]{_PART})+[/\\]?")
_WHOLE_PATH = re.compile(r"(?:file://|~|[A-Za-z]:)?[/\\]?(?:[/\\][^/\\\n]+){2,}[/\\]?")
_FLAG = re.compile(r"(--[\w-]+)(\s+|=)\S+")
_COMMON = {
    "admin",
    "base",
    "build",
    "data",
    "docker",
    "host",
    "localhost",
    "main",
    "model",
    "root",
    "test",
    "ubuntu",
    "user",
}
_LARGEST = 2**26  # bytes of a file that is looked through; weights are larger, and are tensors alone
_SHORTEST_SECRET = 8


def clean(value: Any, *, keep: str = "") -> Any:
    """A text, or all texts in a JSON-ready value, without tokens, folders of absolute paths, names of user and machine.

    Args:
        value: text, number, list or dictionary.
        keep: a text that stays as it is, such as the repository's name, which has a user's in it.

    >>> clean({"script": "/srv/a/train.py", "note": "hf_" + "aB1" * 11, "see": "https://arxiv.org/abs/2410.05192"})
    {'script': 'train.py', 'note': 'hf_***', 'see': 'https://arxiv.org/abs/2410.05192'}
    """
    if isinstance(value, dict):
        named = {key: item for key, item in value.items() if not is_secret(str(key))}
        return {clean(key, keep=keep): clean(item, keep=keep) for key, item in named.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item, keep=keep) for item in value]
    if not isinstance(value, str):
        return value
    return keep.join(map(_clean_text, value.split(keep))) if keep else _clean_text(value)


def without_paths(value: Any) -> Any:
    """A configuration whose values that are absolute paths have lost their folders; other texts are left alone.

    >>> without_paths({"_name_or_path": "/srv/models/tiny", "chat_template": "{{ '/think' }}", "n_layer": 2})
    {'_name_or_path': 'tiny', 'chat_template': "{{ '/think' }}", 'n_layer': 2}
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return last_part(value) if isinstance(value, str) and _WHOLE_PATH.fullmatch(value) else value


def leaks(folder: Path, *, secrets: Collection[str] = (), run: Path | None = None) -> Iterator[str]:
    """What a folder's files hold that must not leave this machine, as `file: what`.

    Args:
        folder: its files are looked through, the pickled ones too.
        secrets: values to look for, beside those of the environment's variables.
        run: folder whose path to look for, beside the user's and the working one.
    """
    known = {value for name, value in os.environ.items() if is_secret(name)} | set(secrets)
    private = (Path.home(), Path.cwd(), *([run.resolve()] if run else ()))
    wanted = {f"the folder {folder}": folder for folder in map(str, private) if len(folder) > 1}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size <= _LARGEST):
        text = file.read_bytes().decode("utf-8", "replace")
        if SECRET_VALUE.search(text) or any(len(value) >= _SHORTEST_SECRET and value in text for value in known):
            yield f"{file.relative_to(folder)}: a token or another secret"
        for what, path in wanted.items():
            if re.search(rf"{re.escape(path)}(?![\w.-])", text):
                yield f"{file.relative_to(folder)}: {what}"


def _clean_text(text: str) -> str:
    text = SECRET_VALUE.sub(BLANK, text)
    text = _FLAG.sub(lambda found: f"{found[1]} ***" if is_secret(found[1]) else found[0], text)
    text = _PATH.sub(lambda found: last_part(found[0]), text)
    for name in _names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "user", text)
    return text


def last_part(path: str) -> str:
    """A path without its folders, whichever way its slashes lean.

    >>> last_part("/srv/models/tiny/"), last_part(r"C:\\models\\tiny")
    ('tiny', 'tiny')
    """
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _names() -> set[str]:
    names = {socket.gethostname(), Path.home().name}
    with suppress(OSError, KeyError):  # no user of that number
        names.add(getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in _COMMON}
