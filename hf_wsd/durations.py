"""Times as people and Slurm write them, and the one place where they become seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from hf_wsd.errors import SettingsError

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
_WORDS = re.compile("".join(rf"(?:({_NUMBER}){unit} ?)?" for unit in UNITS), re.I | re.A)
_CLOCK = re.compile(r"(?:(\d{1,6})-)?(\d{1,6}):([0-5]?\d):([0-5]?\d)", re.A)
_DAYS = re.compile(r"(\d{1,6})-(\d{1,2})(?::([0-5]?\d))?", re.A)  # Slurm's days-hours and days-hours:minutes
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:?\d\d)?", re.A)
_SLURM_NONE = 0xFFFFFFFE  # Slurm's NO_VAL; one more is its INFINITE


def read_duration(text: str, name: str = "a duration") -> float:
    """Seconds of a duration: `23h`, `90m`, `1h30m`, `2d`, `45s`, `04:00:00`, or Slurm's `1-12`, `1-12:30:00`.

    A bare number and `30:00` are refused: Slurm reads both as minutes, others as seconds and as hours.

    Args:
        text: what was written.
        name: the setting, for the error.

    Raises:
        SettingsError: the text is no duration above 0.

    >>> read_duration("1h30m"), read_duration("04:00:00"), read_duration("1-12:00:00"), read_duration("0.5h")
    (5400.0, 14400.0, 129600.0, 1800.0)
    >>> read_duration("90", "time_budget")
    Traceback (most recent call last):
        ...
    hf_wsd.errors.SettingsError: time_budget '90' is no duration above 0: write 23h, 90m, 1h30m, 2d, 45s, 04:00:00 \
(hours:minutes:seconds) or 1-12:00:00 (days-hours:minutes:seconds)
    """
    written = text.strip()
    match = _CLOCK.fullmatch(written) or _DAYS.fullmatch(written) or _WORDS.fullmatch(written)
    numbers = match.groups() if match else ()
    seconds = sum(float(number or 0) * size for number, size in zip(numbers, UNITS.values(), strict=False))
    if seconds <= 0 or (numbers[0] and "-" in written and int(numbers[1]) > 23):
        raise SettingsError(
            f"{name} {text!r} is no duration above 0: write 23h, 90m, 1h30m, 2d, 45s, 04:00:00 "
            "(hours:minutes:seconds) or 1-12:00:00 (days-hours:minutes:seconds)"
        )
    return seconds


def show_duration(seconds: float) -> str:
    """A duration for people, of its two largest units: `read_duration` reads it back.

    >>> show_duration(5400), show_duration(90000.4), show_duration(75), show_duration(0.31)
    ('1h30m', '1d1h', '1m15s', '0.3s')
    """
    if seconds < 10:
        return f"{seconds:.1f}s"
    sizes = list(UNITS.items())
    first = next(i for i, (_, size) in enumerate(sizes) if seconds >= size)
    smallest = sizes[min(first + 1, len(sizes) - 1)][1]
    rest, parts = round(seconds / smallest) * smallest, ""
    for unit, size in sizes:
        count, rest = divmod(rest, size)
        parts += f"{count}{unit}" if count else ""
    return parts


def read_instant(text: str, *, now: float | None = None, name: str = "an instant") -> float:
    """Unix seconds of a date and time: local time, unless it ends in an offset such as `Z` or `+02:00`.

    Args:
        text: what was written.
        now: unix seconds that it must come after; None: it may be past, as when a run is resumed.
        name: the setting, for the error.

    Raises:
        SettingsError: the text is no date with a time, or not after `now`.

    >>> read_instant("2026-12-01T08:00Z"), read_instant("2026-12-01 08:00:30+02:00")
    (1796112000.0, 1796104830.0)
    >>> read_instant("tomorrow", name="finish_by")
    Traceback (most recent call last):
        ...
    hf_wsd.errors.SettingsError: finish_by 'tomorrow' is no date with a time: write 2026-12-01T08:00 (local time), \
2026-12-01T08:00Z or 2026-12-01T08:00+02:00
    """
    try:
        if not _INSTANT.fullmatch(text.strip()):
            raise ValueError
        instant = datetime.fromisoformat(text.strip())
    except ValueError:  # also 2026-02-30, which has the form
        raise SettingsError(
            f"{name} {text!r} is no date with a time: write 2026-12-01T08:00 (local time), 2026-12-01T08:00Z or "
            "2026-12-01T08:00+02:00"
        ) from None
    if now is not None and instant.timestamp() <= now:
        clock = datetime.fromtimestamp(now).astimezone(instant.tzinfo).isoformat(timespec="minutes")
        raise SettingsError(
            f"{name} {text} is past: it is {clock} now ({show_duration(now - instant.timestamp())} later). Give a "
            "later one"
        )
    return instant.timestamp()


def slurm_end(environ: Mapping[str, str]) -> float | None:
    """Unix seconds at which Slurm ends this job, from SLURM_JOB_END_TIME; None without one or without a limit.

    It is what Slurm knew when the job started: `scontrol update` changes the limit, not the variable.

    >>> slurm_end({"SLURM_JOB_END_TIME": "1796112000"}), slurm_end({"SLURM_JOB_END_TIME": "Unknown"}), slurm_end({})
    (1796112000.0, None, None)
    """
    text = environ.get("SLURM_JOB_END_TIME", "").strip()
    known = re.fullmatch(r"\d{1,12}", text, re.A) and 0 < int(text) < _SLURM_NONE
    return float(text) if known else None
