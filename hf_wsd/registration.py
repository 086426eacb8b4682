"""`register()`: makes transformers know our schedules. The only file that changes anything inside transformers."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import transformers.trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from hf_wsd.by_name import NAMES
from hf_wsd.callback import WSDCallback
from hf_wsd.no_trainer import adapt_scripts, make_registered_scheduler
from hf_wsd.settings import Settings
from hf_wsd.trackers import tracker_class


def register(**settings: Any) -> None:
    """Make `--lr_scheduler_type` know our names in this process, and give every Trainer a `WSDCallback`.

    Scripts without a Trainer are adapted too (`hf_wsd.no_trainer`); with other schedulers nothing changes. Call it
    before arguments are parsed. Calling it again changes nothing but the settings.

    Args:
        settings: fields of `hf_wsd.settings.Settings`, such as `trunk=True, budgets=["1B", "2B"]`; they are put into
            the environment as HF_WSD_* variables, so that worker processes have them too. `trunk=False`, None or an
            empty list takes a setting away again.

    Raises:
        SettingsError: a setting that does not exist or cannot be read.
    """
    os.environ.update(Settings.make(**settings).to_env())
    for name, value in settings.items():
        if value is None or value is False or (isinstance(value, (list, tuple, dict)) and not value):
            os.environ.pop(f"HF_WSD_{name.upper()}", None)
    for name in NAMES:
        if name not in SchedulerType._value2member_map_:
            _add_member(name)
        TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)] = partial(make_registered_scheduler, name)
    for name, tracker in INTEGRATION_TO_CALLBACK.items():
        INTEGRATION_TO_CALLBACK[name] = tracker_class(tracker)
    adapt_scripts()
    if WSDCallback not in transformers.trainer.DEFAULT_CALLBACKS:
        transformers.trainer.DEFAULT_CALLBACKS.append(WSDCallback)  # before the trackers' callbacks: they see our keys


def _add_member(name: str) -> None:
    """Enter a real member into the enum: argparse lists members, and `SchedulerType(name)` must find it."""
    member = str.__new__(SchedulerType, name)
    member._name_ = name.upper()
    member._value_ = name
    member.__objclass__ = SchedulerType
    # Pickled as a plain string: a process without hf_wsd can then load `training_args.bin`.
    member.__reduce_ex__ = lambda protocol: (str, (name,))
    SchedulerType._member_names_.append(member._name_)
    SchedulerType._member_map_[member._name_] = member
    SchedulerType._value2member_map_[name] = member
    type.__setattr__(SchedulerType, member._name_, member)
