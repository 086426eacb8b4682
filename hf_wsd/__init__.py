"""Warmup-Stable-Decay pretraining in the Hugging Face Trainer.

Public names are loaded on first use: `import hf_wsd` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Phase": "segment",
    "Segment": "segment",
    "Schedule": "schedule",
    "wsd": "builders",
    "wsd_s": "builders",
    "cosine": "baselines",
    "cyclic_cosine": "baselines",
    "multi_step": "baselines",
    "constant": "baselines",
    "Length": "lengths",
    "Plan": "plan",
    "Preview": "preview",
    "Lineage": "lineage",
    "fork": "forking",
    "read_run": "family",
    "WSDScheduler": "scheduler",
    "get_scheduler": "scheduler",
    "WSDCallback": "callback",
    "WSDLoop": "loop",
    "register": "registration",
    "Family": "one_process",
    "train_family": "one_process",
    "publish": "publishing",
    "WSDError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Without the assignment, `hf_wsd.register` would be the module of that name once it is imported.
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
