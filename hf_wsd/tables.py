"""Rows of anybody's tables of runs, .csv, .tsv, .json and .jsonl, and the numbers in them."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

from hf_wsd.errors import DataError
from hf_wsd.lengths import UNITS

TABLES = (".csv", ".tsv", ".json", ".jsonl")
_LISTS = ("points", "rows")  # under which a JSON table has its rows


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table; what is beside the list of a JSON file is a column of all its rows.

    Args:
        path: .csv or .tsv with a row of names and commas, semicolons or tabs; .json; .jsonl with a row a line.

    Raises:
        DataError: no such file, no table, or no rows.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "runs.csv"
    ...     _ = file.write_text("tokens;loss\\n2M;3.5\\n")
    ...     read_table(file)
    [{'tokens': '2M', 'loss': '3.5'}]
    """
    readers = dict(zip(TABLES, (_separated, _separated, _json, _json_lines), strict=True))
    try:
        if path.suffix not in readers:
            raise ValueError(f"it is none of {', '.join(TABLES)}")
        rows = readers[path.suffix](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"there is no {path}: give folders of runs, or .csv, .tsv, .json and .jsonl files") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table of runs: {error}") from error
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _separated(text: str) -> list[dict[str, Any]]:
    head = text.lstrip().split("\n", 1)[0]
    lines = csv.reader(StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    names, *rows = [[cell.strip() for cell in line] for line in lines if any(map(str.strip, line))] or [[]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two columns are called {twice[0]!r}")
    for number, row in enumerate(rows, 1):
        if len(row) > len(names):
            raise ValueError(f"row {number} has {len(row)} cells for {len(names)} columns")
    return [dict(zip(names, row + [""] * (len(names) - len(row)), strict=True)) for row in rows]


def _json(text: str) -> list[dict[str, Any]]:
    rows, shared = json.loads(text), {}
    if isinstance(rows, dict):
        shared = {name: value for name, value in rows.items() if not isinstance(value, (list, dict))}
        rows = next((rows[name] for name in _LISTS if name in rows), None)
    if not isinstance(rows, list):
        raise ValueError(f"it is no list of rows, and has none under {' or '.join(_LISTS)}")
    return [shared | _row(number, row) for number, row in enumerate(rows, 1)]


def _json_lines(text: str) -> list[dict[str, Any]]:
    return [_row(number, json.loads(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _row(number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"row {number} has no names of columns: {str(row)[:40]}")
    return row


def number_of(value: Any) -> float:
    """A number out of a table, also with a unit.

    Raises:
        ValueError: it is none.

    >>> number_of("1.5B"), number_of(" 3e8 "), number_of(7)
    (1500000000.0, 300000000.0, 7.0)
    """
    text = str(value).strip().upper()
    unit = text[-1:] if text[-1:] in UNITS else ""
    return float(text.removesuffix(unit)) * UNITS[unit]
