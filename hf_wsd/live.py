"""What a running job is asked for from outside - its decay, or its end - and how all its processes answer alike."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.decision import REQUEST, Decision, Request, answer, decide, must_wait, read_request
from hf_wsd.durations import show_duration
from hf_wsd.errors import ForkError, ScheduleError, WSDError
from hf_wsd.job import Job
from hf_wsd.job_clock import JobClock
from hf_wsd.lineage import Lineage
from hf_wsd.ranks import from_main, highest, leave
from hf_wsd.segment import Phase
from hf_wsd.settings import Settings
from hf_wsd.signals import DECAY, END, Signals
from hf_wsd.start import Start

logger = logging.get_logger(__name__)
_NOTHING, _DECAY, _END = range(3)


class JobEnd(SystemExit):
    """The job ends before the run does: everything is saved, and the same command goes on."""

    STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again

    def __init__(self) -> None:
        super().__init__(self.STATUS)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What all processes do after an update: decay as decided, or end the job because of `ends`, or go on."""

    decision: Decision | None = None
    ends: str | None = None


def listen(
    job: Job, start: Start, settings: Settings, *, main: bool, goes_on: bool = False, then: str = "stop"
) -> Live:
    """A `Live` for a run that is about to train; a branch has its decay already.

    Raises:
        SettingsError: a time that cannot be read, or that is past.
    """
    if settings.branch:
        settings = replace(settings, finish_by=None, time_budget=None, on_job_end=None)
    fresh = job.step == 0 and start.decision is None
    return Live(
        job.folder,
        start.record,
        planned_end=job.max_steps,
        decision=start.decision,
        clock=JobClock(job.folder, settings, fresh=fresh) if main else None,
        goes_on=goes_on,
        then=then,
    )


class Live:
    """Listens to the outside world for one run.

    After every update all processes ask `after_update`. A wish that reaches any of them reaches all, at the same step.

    Args:
        run: the run's folder.
        record: what the run is.
        planned_end: the last step that the job can reach by itself.
        decision: an earlier job's, to be followed.
        clock: the job's, on the main process; None on the others, which only hand on what they hear.
        goes_on: whether the script can go back to the fork point and continue the trunk.
        then: what a wish means that does not say.
    """

    def __init__(
        self,
        run: Path,
        record: Lineage,
        *,
        planned_end: int,
        decision: Decision | None = None,
        clock: JobClock | None = None,
        goes_on: bool = False,
        then: str = "stop",
    ) -> None:
        self._run, self._record, self._planned_end = run, record, planned_end
        self._decision, self._clock, self._goes_on = decision, clock, goes_on
        self._then = then
        self._wish: Request | None = None
        self._clock_refused = False
        self._signals = Signals()
        self._signals.listen()
        if clock is not None:  # a wish that an earlier job has not seen is none for this one
            with suppress(OSError):
                (run / REQUEST).unlink(missing_ok=True)

    def ask(self, request: Request) -> None:
        """Ask for the decay from within the script: it starts after the update that is being made."""
        self._wish = request

    def evaluated(self) -> None:
        """An evaluation has ended."""
        if self._clock is not None:
            self._clock.evaluated()

    def saved(self) -> None:
        """A checkpoint is saved, with its record."""
        if self._clock is not None:
            self._clock.saved()

    def close(self) -> None:
        """Stop listening."""
        self._signals.restore()

    def end_job(self, why: str, *, step: int) -> None:
        """End this process, as all others do now.

        Raises:
            JobEnd: always.
        """
        self.close()
        highest(0)  # no process leaves before the last one has saved
        if self._clock is not None:
            saved = max((s for s in saved_checkpoints(self._run) if s <= step), default=None)
            at = "nothing is saved yet" if saved is None else f"saved at step {saved}"
            logger.warning(
                f"hf_wsd: the job ends at step {step} ({why}); {at}. The same command goes on from there, a script "
                f"that does not look for checkpoints with --resume_from_checkpoint {self._run}/checkpoint-{saved}"
            )
        leave(JobEnd.STATUS)
        raise JobEnd

    def after_update(self, step: int) -> Verdict:
        """What is to be done after `step` updates; all processes have to ask, and get the same answer."""
        if self._decision is not None and self._decision.then == "continue" and step == self._decision.fork:
            return Verdict(decision=self._decision)  # an earlier job's
        if self._clock is not None:
            self._clock.updated()
        agreed = highest(self._heard(step))
        if agreed == _NOTHING:
            return Verdict()
        verdict: Verdict = from_main(self._choose(step, agreed) if self._clock else None)
        if self._clock is None:
            self._wish = None
        self._decision = verdict.decision or self._decision
        return verdict

    def _heard(self, step: int) -> int:
        """What this process has heard until now."""
        if self._signals.received(DECAY):
            self._wish = self._wish or Request(by="SIGUSR1")
        if self._signals.received(END):
            return _END
        if self._clock is not None:
            if self._clock.job_must_end():
                return _END
            self._wish = self._wish or self._from_file() or self._from_clock(self._clock, step)
            if must_wait(self._record.schedule, step):
                return _NOTHING
        return _NOTHING if self._wish is None else _DECAY

    def _from_file(self) -> Request | None:
        try:
            return read_request(self._run)
        except ForkError as error:
            self._refuse(Request(by="", id=""), str(error))
            return None

    def _from_clock(self, clock: JobClock, step: int) -> Request | None:
        """The wish of a deadline; before a planned end that would leave no room for the decay it comes earlier."""
        in_decay = self._record.schedule.phase(max(step - 1, 0)) is Phase.DECAY
        if not clock.asked_by or self._decision is not None or in_decay or self._clock_refused:
            return None
        wish = Request(by=clock.asked_by)
        start = clock.decay_must_start(step, lambda fork: self._end(wish, fork) - fork)
        if start is None:
            fits = self._end(wish, step) <= self._planned_end < self._end(wish, step + 1)
            return wish if fits and not self._record.settings.get("budgets") else None
        if start.late and clock.asked_by == "--on-job-end":
            return None  # only if the measured time fits
        if start.late:
            logger.warning(
                f"hf_wsd: the decay starts now, but will end about {show_duration(start.late)} after {wish.by}: "
                f"{show_duration(start.left)} are left and it takes about {show_duration(start.expected)}"
            )
        return wish

    def _end(self, wish: Request, fork: int) -> int:
        """Where the decay of a wish would end if it started at `fork`."""
        try:
            return self._decide(wish, fork, extend=True).end
        except ScheduleError:  # in the warm-up, or too short for a decay: the deadline is looked at again
            return fork + 1

    def _decide(self, wish: Request, step: int, *, extend: bool) -> Decision:
        settings: Mapping[str, Any] = self._record.settings
        per_step = {"tokens_per_step": self._record.tokens_per_step}
        end = step + 10**12 if extend else self._planned_end
        return decide(wish, self._record.schedule, step=step, planned_end=end, settings=settings, **per_step)

    def _choose(self, step: int, agreed: int) -> Verdict:
        """On the main process: what is done about what was heard."""
        clock = self._clock
        assert clock is not None
        if agreed == _END:
            return self._end_job(clock, step)
        wish = self._wish or Request(by="SIGUSR1")  # which another process has heard
        if must_wait(self._record.schedule, step):
            self._wish = wish
            logger.warning(f"hf_wsd: the decay asked for by {wish.by} starts when the warm-up ends")
            return Verdict()
        self._wish = None
        return Verdict(decision=self._accept(wish, step))

    def _end_job(self, clock: JobClock, step: int) -> Verdict:
        by_clock = clock.job_must_end()
        why = "its time limit" if by_clock else "SIGTERM"
        if clock.decays_on_job_end and not by_clock and self._decision is None:
            wish = Request(by="--on-job-end")
            if clock.fits_grace(self._end(wish, step) - step) and (decision := self._accept(wish, step)):
                return Verdict(decision=decision)
            logger.warning("hf_wsd: there is no time for the decay before this job is killed")
        return Verdict(ends=why)

    @property
    def _by_clock(self) -> str | None:
        return self._clock.asked_by if self._clock is not None else None

    def _accept(self, wish: Request, step: int) -> Decision | None:
        """The decision, on disk before anything is done about it; None, and the reason said, where there is none."""
        wish = wish if wish.then else replace(wish, then="stop" if wish.by == self._by_clock else self._then)
        try:
            if self._decision is not None:
                raise ForkError(f"one was decided already: {self._decision}")
            if wish.then == "continue" and not self._goes_on:
                raise ForkError(
                    "this script cannot go back to its fork point, as recipes/pretrain.py can. Ask for the decay with "
                    f"--then stop, or train it beside the trunk: hf-wsd decay {self._run} --at STEP"
                )
            decision = self._decide(wish, step, extend=wish.then == "continue")  # a branch is a run of its own
            decision.write(self._run)
            self._answer(wish, str(decision), accepted=True)
        except (WSDError, OSError) as error:
            self._refuse(wish, str(error))
            return None
        logger.warning(f"hf_wsd: {decision}")
        return decision

    def _refuse(self, wish: Request, why: str) -> None:
        logger.error(f"hf_wsd: no decay for {wish.by or REQUEST}: {why}. Training goes on")
        self._clock_refused |= wish.by == self._by_clock
        self._answer(wish, why, accepted=False)

    def _answer(self, wish: Request, said: str, *, accepted: bool) -> None:
        with suppress(OSError):
            answer(self._run, wish.id, said=said, accepted=accepted)
