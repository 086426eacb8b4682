"""Every error of hf_wsd.

::

    WSDError (ValueError)
    ├── ShapeError        an unknown shape, or one that the given end points do not allow
    │   └── ShapeImportError  a shape of the user's own that cannot be imported here
    ├── ScheduleError     lengths, fractions or phases that do not fit together
    │   └── ForkError     a branch that cannot leave the trunk where it was asked to
    ├── SettingsError     an unknown, doubled or unreadable setting (kwargs, flags, HF_WSD_* variables)
    ├── ResumeError       a checkpoint whose past is not the past of this run
    ├── CheckpointError   a checkpoint that is missing, incomplete or damaged
    │   └── RecordError   a `wsd.json` that cannot be read
    ├── DataError         a corpus that cannot be read or packed
    ├── RunError          a run of a branch that failed, or that cannot be started again
    ├── FitError          data from which no honest fit or forecast can be made
    └── PublishError      a model that cannot be published, or a revision that has changed on the hub
        └── UnreachableError  a hub that does not answer, or broke off: the same command goes on

A message says what was asked, the numbers, what is allowed and the repair.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class WSDError(ValueError):
    """The root of the tree: `except WSDError` catches whatever this package refuses."""


class ShapeError(WSDError):
    """An unknown shape, or end points that the shape does not allow."""


class ShapeImportError(ShapeError):
    """A shape of the user's own that cannot be imported here."""


class ScheduleError(WSDError):
    """Lengths, fractions or phases that do not fit together."""


class ForkError(ScheduleError):
    """A branch that cannot leave the trunk where it was asked to."""


class SettingsError(WSDError):
    """An unknown, doubled or unreadable setting."""


class ResumeError(WSDError):
    """A checkpoint whose past is not the past of this run."""


class CheckpointError(WSDError):
    """A checkpoint that is missing, incomplete or damaged."""


class RecordError(CheckpointError):
    """A `wsd.json` that cannot be read."""


class DataError(WSDError):
    """A corpus that cannot be read or packed."""


class RunError(WSDError):
    """A run of a branch that failed, or that cannot be started again."""


class FitError(WSDError):
    """Data from which no honest fit or forecast can be made."""


class PublishError(WSDError):
    """A model that cannot be published, or a revision that has changed on the hub."""


class UnreachableError(PublishError):
    """A hub that does not answer, or broke off: the same command goes on."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table, with the nearest known one.

    >>> unknown("shape", "linaer", ["linear", "cosine"])
    "unknown shape 'linaer': did you mean 'linear'? Known: linear, cosine."
    """
    names = list(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f": did you mean {near[0]!r}?" if near else "."
    return f"unknown {what} {name!r}{hint} Known: {', '.join(names)}."
