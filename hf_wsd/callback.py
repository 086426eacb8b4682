"""`WSDCallback`: what the schedule means for a Trainer - checkpoints, evaluations, logs, records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_wsd.asked import check_kwargs
from hf_wsd.by_name import BUILDERS
from hf_wsd.casts import cast
from hf_wsd.damage import mend
from hf_wsd.decision import Decision, Request
from hf_wsd.errors import RunError
from hf_wsd.history import losses_of
from hf_wsd.keeper import Keeper
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.live import Live, Verdict, listen
from hf_wsd.moved import just_rewound, move_data
from hf_wsd.probe import make_loadable, probe
from hf_wsd.pushing import take_over
from hf_wsd.randomness import Randomness, start_workers_unseen
from hf_wsd.ranks import from_main
from hf_wsd.scheduler import WSDScheduler, find_wsd_scheduler
from hf_wsd.settings import Settings
from hf_wsd.signals import spare_workers
from hf_wsd.start import Start, start_run
from hf_wsd.trackers import name_run
from hf_wsd.trainer_job import (
    reach_decided_end,
    refuse_other_scheduler,
    refuse_trainer_arguments,
    set_state,
    trainer_job,
)

logger = logging.get_logger(__name__)


class WSDCallback(TrainerCallback):
    """Keeps what a WSD run needs kept; does nothing where the scheduler is not a `WSDScheduler`.

    - Before the first step: refuses a run that would not be the one asked for (`hf_wsd.start`).
    - Saves and evaluates where a decay starts and ends, and at the fork points that `budgets` name.
    - Links those checkpoints into `_fork-points/`, out of reach of `save_total_limit`.
    - Puts every random generator back after an evaluation: with dropout an evaluation would change the final weights.
    - Adds `tokens` and `phase` (0 warm-up, 1 stable, 2 decay) to the logs; writes `wsd.jsonl` and `wsd.json`.

    Its settings are the HF_WSD_* variables. It evaluates only where the Trainer has an `eval_strategy`.

    Args:
        allow: differences to the checkpoint's run that are meant (`hf_wsd.sameness.NAMES`), for
            `Trainer(callbacks=[WSDCallback(allow=["learning_rate"])])`.
    """

    trainers: ClassVar[int] = 0  # made in this process; a script without any steps its scheduler in its own way
    folder: ClassVar[Path | None] = None  # --output_dir of the newest of them

    def __init__(self, allow: str | Iterable[str] = ()) -> None:
        WSDCallback.trainers += 1
        self._allow = cast("allow", allow)
        self._scheduler: WSDScheduler | None = None  # None: this run is not ours
        self._start: Start
        self._keeper: Keeper
        self._randomness: Randomness | None = None
        self._lr, self._skipped_updates = 0.0, 0
        self._losses: dict[str, float] = {}
        self._probe: float | None = None
        self._live: Live
        self._ends: str | None = None
        self._save_put_off = False  # there was no room for it
        self.goes_on = False  # the script can go back to the fork point of a decay on demand; see `one_process`
        self.then = "stop"  # what such a wish means if it does not say
        self.stops_at: frozenset[int] = frozenset()

    @property
    def record(self) -> Lineage | None:
        """What the records of all checkpoints of the run share; None where the run is not ours."""
        return self._start.record if self._scheduler is not None else None

    @property
    def decision(self) -> Decision | None:
        """The decay that the running job was asked for, if it was."""
        return self._start.decision if self._scheduler is not None else None

    def decay_now(self, **decay: Any) -> None:
        """Ask for the decay of the running job: it starts after the update that is being made, on all processes.

        Args:
            decay: fields of `hf_wsd.decision.Request`, such as `num_decay_steps=500` or `then="continue"`.

        Raises:
            RunError: no run of ours is training.
        """
        if self._scheduler is None:
            raise RunError("no run with a wsd schedule is training: there is nothing to decay")
        self._live.ask(Request(**{"by": "the script"} | decay))

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse what Trainer could not use: `lr_scheduler_kwargs`, and a damaged checkpoint, which it would pick."""
        if getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) in BUILDERS:
            check_kwargs(args.lr_scheduler_kwargs)
            if self._allow:  # what Trainer will hand to the scheduler that it makes
                known = cast("allow", (args.lr_scheduler_kwargs or {}).get("allow")) or ()
                args.lr_scheduler_kwargs = {**(args.lr_scheduler_kwargs or {}), "allow": [*known, *self._allow]}
            WSDCallback.folder = Path(args.output_dir)
            mend(Path(args.output_dir), Settings.from_env(), named=args.resume_from_checkpoint)
            reach_decided_end(args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Check the run, work out what to keep, and begin its files."""
        scheduler, settings = find_wsd_scheduler(lr_scheduler), Settings.from_env()
        self._scheduler = None
        if scheduler is None:
            return refuse_other_scheduler(args, lr_scheduler, settings)
        if scheduler.keeper not in (None, self):  # the script added a second callback: one is enough
            return None
        refuse_trainer_arguments(scheduler.schedule, args, state, settings)
        job = trainer_job(args, state)
        dataset = getattr(train_dataloader, "dataset", None)
        self._start = start_run(scheduler, settings, job, model=model, dataset=dataset)
        scheduler.keeper, self._scheduler = self, scheduler
        pusher = take_over(args, settings)
        self._keeper = Keeper(Path(args.output_dir), self._start.record, self._start.kinds, pusher=pusher)
        self._skipped_updates = self._start.record.skipped_updates
        name_run(args, self._start.record)
        new_run = scheduler.intent == "branch" or just_rewound(self._start.record)
        set_state(args, state, last_step=self._start.last_step, new_run=new_run)
        move_data(train_dataloader, self._start.record.moved_data, args, step=state.global_step)
        self._losses = {}
        if state.is_world_process_zero:
            self._keeper.begin(state.global_step, tokens=self._tokens(state))
            logger.warning(self._start.announcement)
        self._randomness = Randomness.now() if args.eval_on_start else None
        if state.global_step:
            start_workers_unseen(train_dataloader)
        self._live = listen(
            job, self._start, settings, main=state.is_world_process_zero, goes_on=self.goes_on, then=self.then
        )
        self._ends, self._save_put_off = None, False
        spare_workers(train_dataloader)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse an update that the schedule does not have."""
        if self._scheduler is not None:
            total = self._start.schedule.total_steps
            if total is not None and state.global_step >= total:
                raise RunError(f"update {state.global_step} is past the end of the schedule ({total} steps)")
            self._lr = self._scheduler.get_last_lr()[0]
            if self._ends:  # the save before it did not come about
                self._live.end_job(self._ends, step=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for the saves and evaluations that the schedule and the budgets need."""
        if self._scheduler is None:
            return
        step = state.global_step
        while self._scheduler.steps_done < step:  # fp16 overflow: Trainer counts the step but skips the scheduler
            self._scheduler.step()
            self._skipped_updates += 1
        kept = step in self._start.kinds
        ends_a_budget = step in self._start.budget_ends
        ends_a_budget &= not args.load_best_model_at_end  # a best model that is not saved could not be loaded
        control.should_save |= kept
        control.should_evaluate |= (kept or ends_a_budget) and args.eval_strategy != "no"
        self._losses = {}
        self._obey(self._live.after_update(step), args, state, control)
        self._probe = probe(kwargs["model"]) if step in self._start.kinds and state.is_world_process_zero else None
        self._randomness = Randomness.now()  # at every step: a later callback may ask for an evaluation too
        self._prepare_save(state, control)

    def _prepare_save(self, state: TrainerState, control: TrainerControl) -> None:
        """Announce a save that is due; one that would fail is put off, for Trainer ends the training with its error."""
        if control.should_save or self._save_put_off:
            ready, now = None, self._now(state)
            if state.is_world_process_zero:
                ready = self._keeper.make_ready(state.global_step, again=not control.should_save, **now)
            control.should_save = bool(from_main(ready))
            self._save_put_off = not control.should_save

    def _obey(self, verdict: Verdict, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Do what all processes have agreed on."""
        self._ends = verdict.ends
        if (decision := verdict.decision) is not None:
            self._start = self._start.follow(decision)
            self._keeper.follow(self._start.record, self._start.kinds)
            control.should_evaluate |= args.eval_strategy != "no"
            control.should_training_stop |= decision.then == "continue"
            if self._scheduler is not None and decision.then == "stop":
                self._scheduler.decide(decision.schedule, decision.fork)
                state.max_steps = decision.end
            control.should_training_stop |= decision.stops_first
            if decision.stops_first and not self.goes_on:
                self._ends = f"its planned end is before step {decision.end}, where the decay ends"
        control.should_save |= decision is not None or self._ends is not None
        control.should_training_stop |= state.global_step in self.stops_at

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluations and saves by epoch are due here."""
        if self._scheduler is not None:
            self._randomness = Randomness.now()
            self._prepare_save(state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the random generators back, and keep the losses for the record."""
        if self._scheduler is None:
            return
        if self._randomness is not None:
            self._randomness.restore()
        self._losses |= losses_of(metrics or {})
        if control.should_save and state.is_world_process_zero:
            self._keeper.announce(state.global_step, **self._now(state))
        self._live.evaluated()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add tokens and phase to what is logged, and write the row down."""
        if self._scheduler is None or logs is None:
            return
        phase = self._start.schedule.phase(max(state.global_step - 1, 0))
        if "learning_rate" in logs:
            logs["learning_rate"] = self._lr  # DeepSpeed steps the scheduler before Trainer reads the lr of the update
        if (tokens := self._tokens(state)) is not None:
            logs["tokens"] = tokens
        logs["phase"] = phase.number
        if state.is_world_process_zero:
            row = {"step": state.global_step} | {k: v for k, v in logs.items() if isinstance(v, (int, float))}
            if "train_runtime" not in row or state.global_step == self._start.last_step:  # of a whole run
                self._keeper.log(row | {"phase": phase.value}, kwargs.get("eval_dataloader"))

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the record in what is pushed: Trainer pushes a checkpoint before it calls `on_save`."""
        if self._scheduler is None or not state.is_world_process_zero:
            return
        own = self._keeper.checkpoint(state.global_step)
        if own.is_dir() and not (own / RECORD).exists():
            self._keeper.save(state.global_step, at=own, keep=False, **self._now(state))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the record beside the checkpoint, and keep the checkpoint if it is one to fork from."""
        if self._scheduler is None:
            return
        PartialState().wait_for_everyone()  # each rank writes its own RNG state: keep no half checkpoint
        if state.is_world_process_zero:
            if state.global_step in self._start.kinds:
                make_loadable(self._keeper.checkpoint(state.global_step), **kwargs)
            self._keeper.save(state.global_step, **self._now(state))
        self._live.saved()
        if self._ends:
            self._live.end_job(self._ends, step=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop listening for signals and wishes."""
        if self._scheduler is not None:
            self._live.close()

    def _now(self, state: TrainerState) -> dict[str, Any]:
        """What the record of this step's checkpoint has of its own."""
        now = {"tokens": self._tokens(state), "losses": self._losses, "probe": self._probe}
        return now | {"skipped_updates": self._skipped_updates}

    def _tokens(self, state: TrainerState) -> int | None:
        """Tokens seen; None where samples differ in length and `include_num_input_tokens_seen` is off."""
        if self._start.record.tokens_per_step is None:
            return state.num_input_tokens_seen or None
        return self._start.record.tokens_at(state.global_step)
