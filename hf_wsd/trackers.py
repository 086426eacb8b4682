"""What trackers are told: a branch is a new run of its trunk's group, with its lineage and its curves over tokens.

`register()` has the names of `--report_to` mean the classes made here. Where the scheduler is not ours they do what
transformers' own do, to the letter. Where it is, a tracker that fails after the first step never stops training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    rewrite_logs,
)
from transformers.utils import logging

from hf_wsd.lineage import Lineage
from hf_wsd.scheduler import find_wsd_scheduler
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)
_NO_CURVES = ("/tokens", "/epoch", "runtime", "_per_second", "/total_flos", "/train_loss")


def is_new_run(record: Lineage) -> bool:
    """Whether trackers must take a run for another than the one whose checkpoint it left.

    A branch is one; a longer trunk only where it has a folder of its own.
    """
    elsewhere = record.parent is not None and record.parent.checkpoint.startswith("..")
    return record.intent in ("branch", "rewind") or (record.intent == "extend" and elsewhere)


def run_name(record: Lineage, folder: Path, given: str | None, *, replayed: bool = False) -> str | None:
    """What trackers call a run: a branch is `group/folder`, unless it was given a name of its own.

    Args:
        record: the run's.
        folder: where it runs.
        given: the script's own --run_name.
        replayed: the script's command is the trunk's, and so is the name.
    """
    if not is_new_run(record) or (given and given != record.group and not replayed):
        return given
    return f"{record.group}/{folder.resolve().name}".lstrip("/")


def job_type(record: Lineage) -> str:
    """What a run is, in one word: "branch", "extend", "trunk", or "run" for one that decays by itself."""
    if record.intent in ("branch", "extend", "rewind"):
        return record.intent
    return "trunk" if record.schedule.total_steps is None else "run"


def lineage_config(record: Lineage, folder: Path) -> dict[str, str | int]:
    """The lineage of a run as a tracker's config: flat, with plain values, which each of them takes.

    >>> from hf_wsd.builders import wsd
    >>> record = Lineage(step=0, kind="periodic", schedule=wsd(100), group="RUN", last_step=100)
    >>> lineage_config(record, Path("RUN"))["wsd/job_type"], lineage_config(record, Path("RUN"))["wsd/last_step"]
    ('run', 100)
    """
    parent = record.parent
    known = {
        "group": record.group,
        "job_type": job_type(record),
        "folder": str(folder),
        "schedule": str(record.schedule),
        "schedule_json": json.dumps(record.schedule.to_dict()),
        "parent": parent.checkpoint if parent else None,
        "fork_step": parent.step if parent else None,
        "budget": record.requested,
        "changed": record.changed or None,
        "last_step": record.last_step,
        "tokens_per_step": record.tokens_per_step,
        "version": record.versions.get("hf-wsd"),
    }
    return {f"wsd/{name}": value for name, value in known.items() if value is not None}


def accelerate_trackers(record: Lineage, folder: Path, name: str | None = None) -> dict[str, Any]:
    """Keywords for `accelerator.init_trackers(project, **keywords)`: `config` and `init_kwargs`.

    TensorBoard has no groups: give it, as `project_dir` of the Accelerator, the run's own folder.

    Args:
        record: the run's.
        folder: where it runs.
        name: what the user calls it.
    """
    name = run_name(record, folder, name, replayed=Settings.from_env().branch is not None)
    wandb = _wandb_keywords(record) | {"name": name}
    trackio = {"group": record.group, "name": name, "resume": "never" if _begins(record) else "allow"}
    return {"config": lineage_config(record, folder), "init_kwargs": {"wandb": wandb, "trackio": trackio}}


def name_run(args: TrainingArguments, record: Lineage) -> None:
    """Give a branch a name of its own before the trackers see it: a replayed one would make two runs of one name."""
    replayed = Settings.from_env().branch is not None
    name = run_name(record, Path(args.output_dir), args.run_name, replayed=replayed)
    if name != args.run_name:
        logger.warning(f"hf_wsd: trackers call this run {name}")
        args.run_name = name


@contextmanager
def survive(tracker: Any) -> Iterator[None]:
    """What a tracker raises inside is logged, once for each kind of error, and training goes on.

    Args:
        tracker: a tracker's callback, or the Accelerator: `with survive(accelerator): accelerator.log(values)`.
    """
    try:
        yield
    except Exception as error:  # a tracker may raise anything: its disk, its network, its own mistakes
        kinds = tracker.__dict__.setdefault("_kinds_of_error", set())
        if type(error) not in kinds:
            kinds.add(type(error))
            logger.error(
                f"hf_wsd: tracking by {type(tracker).__name__} failed ({type(error).__name__}: {error}); training goes "
                "on. It is tried again at each log; more of the same is not reported"
            )


def tracker_class(callback: type[TrainerCallback]) -> type[TrainerCallback]:
    """The class that `--report_to` shall make of a tracker's callback: told of lineage, and never in training's way.

    A subclass of its name, so that `remove_callback(WandbCallback)` and the like still find it.
    """
    if issubclass(callback, _Safe):
        return callback
    ours = {TensorBoardCallback: _TensorBoard, TrackioCallback: _Trackio, WandbCallback: _Wandb}.get(callback, callback)
    events = (
        event for event in dir(ours) if event.startswith("on_") and event not in ("on_init_end", "on_train_begin")
    )
    changed = [event for event in events if getattr(ours, event) is not getattr(TrainerCallback, event, None)]
    return type(callback.__name__, (_Safe, ours), {event: _safe(getattr(ours, event)) for event in changed})


class _Safe:
    """Marks the classes of `tracker_class`."""


def _safe(event: Callable[..., TrainerControl | None]) -> Callable[..., TrainerControl | None]:
    """An event of a tracker that, in a run of ours, logs what it raises."""

    @wraps(event)
    def safe(self: Any, *args: Any, **kwargs: Any) -> TrainerControl | None:
        if _record(kwargs) is None:
            return event(self, *args, **kwargs)
        changed = None
        with survive(self):
            changed = event(self, *args, **kwargs)
        return changed

    return safe


def _record(kwargs: Mapping[str, Any]) -> Lineage | None:
    """The record of a run of ours, from what a callback is given."""
    scheduler = find_wsd_scheduler(kwargs.get("lr_scheduler"))
    return getattr(scheduler.keeper, "record", None) if scheduler is not None else None


def _begins(record: Lineage) -> bool:
    """Whether no update of the run itself has been made yet."""
    return record.step == (record.parent.step if record.parent else 0)


def _wandb_keywords(record: Lineage) -> dict[str, Any]:
    """What `wandb.init` is told of a family; the user's own variables win."""
    group = os.environ.get("WANDB_RUN_GROUP") or record.group
    return {"group": group or None, "job_type": os.environ.get("WANDB_JOB_TYPE") or job_type(record)}


class _Package:
    """A tracker's package whose `init` is given more keywords: transformers' callbacks have no place for them."""

    def __init__(self, package: Any, **keywords: Any) -> None:
        self._package = package
        self._keywords = keywords

    def init(self, **kwargs: Any) -> Any:
        return self._package.init(**kwargs | self._keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._package, name)


class _TensorBoard(TensorBoardCallback):
    """The lineage as a text, and each number a second time over tokens: TensorBoard's x axis is what is called step."""

    logging_dir: str | None
    tb_writer: Any

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *control: Any, **kwargs: Any) -> None:
        record = _record(kwargs)
        if record is not None and is_new_run(record) and self.logging_dir is not None:
            # The trunk's TENSORBOARD_LOGGING_DIR: in one folder their events would be one curve.
            self.logging_dir = os.path.join(self.logging_dir, str(args.run_name).lstrip("/"))
        super().on_train_begin(args, state, *control, **kwargs)
        if record is not None and self.tb_writer is not None:
            with survive(self):
                rows = [
                    f"| {name} | {value} |" for name, value in lineage_config(record, Path(args.output_dir)).items()
                ]
                self.tb_writer.add_text("wsd", "\n".join(["| | |", "|---|---|", *rows]), state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, *control: Any, **kwargs: Any) -> None:
        try:
            super().on_log(args, state, *control, **kwargs)
            tokens = kwargs["logs"].get("tokens")
            if self.tb_writer is not None and _record(kwargs) is not None and tokens is not None:
                for name, value in rewrite_logs(kwargs["logs"]).items():
                    if isinstance(value, (int, float)) and not name.endswith(_NO_CURVES):
                        self.tb_writer.add_scalar(f"by_tokens/{name}", value, tokens)
        except Exception:
            self.tb_writer = None  # a writer that has failed once never writes again: the next log opens a new file
            raise


class _Wandb(WandbCallback):
    """Group, job type and lineage; losses have tokens as their x axis."""

    _wandb: Any

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *control: Any, **kwargs: Any) -> None:
        record = _record(kwargs) if state.is_world_process_zero and state.trial_name is None else None
        if record is not None:
            with survive(self):
                run = self._wandb.run
                if run is not None and run.config.get("wsd/folder", args.output_dir) != args.output_dir:
                    self._wandb.finish()  # the trunk's, in one process with its branch: WandbCallback leaves it open
                self._wandb = _Package(self._wandb, **_wandb_keywords(record))
        super().on_train_begin(args, state, *control, **kwargs)
        if record is not None:
            with survive(self):
                self._wandb.config.update(lineage_config(record, Path(args.output_dir)), allow_val_change=True)
                self._wandb.define_metric("train/tokens")

    def on_log(self, args: TrainingArguments, state: TrainerState, *control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and _record(kwargs) is not None and "tokens" in kwargs["logs"]:
            with survive(self):
                self._draw_over_tokens(rewrite_logs(kwargs["logs"]))
        super().on_log(args, state, *control, **kwargs)

    def _draw_over_tokens(self, logs: Mapping[str, Any]) -> None:
        """WandbCallback's "*" means global_step; a metric that is defined by its own name goes before it."""
        losses = {name for name in logs if name == "train/loss" or (name.startswith("eval/") and name.endswith("loss"))}
        drawn = self.__dict__.setdefault("_drawn", set())
        for name in losses - drawn:
            self._wandb.define_metric(name, step_metric="train/tokens", step_sync=True)
        drawn |= losses


class _Trackio(TrackioCallback):
    """Group and lineage; `train/tokens` is among the x axes of its dashboard."""

    _trackio: Any

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *control: Any, **kwargs: Any) -> None:
        record = _record(kwargs) if state.is_world_process_zero else None
        if record is not None:
            # TrackioCallback resumes whatever has the name. A new branch is new, also where a family of another
            # folder has used the name before.
            never = {"resume": "never"} if is_new_run(record) and _begins(record) else {}
            self._trackio = _Package(self._trackio, group=record.group or None, **never)
        super().on_train_begin(args, state, *control, **kwargs)
        if record is not None:
            with survive(self):
                self._trackio.config.update(lineage_config(record, Path(args.output_dir)), allow_val_change=True)
