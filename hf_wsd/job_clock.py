"""The clock of a job: the run's measured times, kept over its jobs, and what must start or end because of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import ceil, inf
from pathlib import Path
from typing import ClassVar

import psutil
from transformers.utils import logging

from hf_wsd.deadline import Deadline, Start
from hf_wsd.durations import read_duration, read_instant, slurm_end
from hf_wsd.errors import RecordError
from hf_wsd.history import to_json, write_atomically
from hf_wsd.pace import Pace, Work
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)
PACE = "_pace.json"
EXIT = 5.0  # seconds for a process to end after its last save
GRACE = 30.0  # seconds from SIGTERM to SIGKILL: torchrun's and Slurm's
_WRITE_EVERY = 10.0  # seconds: what a kill -9 can take from the time that a budget has counted


class JobClock:
    """Measures one job, and knows the times by which something is wanted of it.

    Args:
        run: the run's folder, where the measured times are kept for its next job.
        settings: `finish_by`, `time_budget`, `job_time_limit` and `on_job_end`.
        fresh: whether the run has not begun: then a time that is past is a mistake.
        env: SLURM_JOB_END_TIME is the job's end where no limit is given.
        clock: unix seconds.

    Raises:
        SettingsError: a time that cannot be read, or of a fresh run one that is past.
    """

    counted_until: ClassVar[float] = 0.0  # in this process

    def __init__(
        self,
        run: Path,
        settings: Settings,
        *,
        fresh: bool = False,
        env: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file, self._clock, self._last = run / PACE, clock, clock()
        self._counts = dict.fromkeys(("steps", "evaluations", "saves"), 0)  # over all jobs
        self._written = self._last
        self.pace = Pace() if fresh else self._read()
        process = psutil.Process().create_time() if clock is time.time else self._last
        began = max(JobClock.counted_until, process)  # an earlier run in this process has counted its part
        self._job_end = slurm_end(env) or inf
        if settings.job_time_limit is not None:
            self._job_end = min(self._job_end, process + read_duration(settings.job_time_limit, "job_time_limit"))
        wanted = self._wanted(settings, began, fresh=fresh)
        self.asked_by = min(wanted, key=lambda name: wanted[name], default="")
        self._deadline = Deadline(at=wanted[self.asked_by], job_end=self._job_end) if wanted else None
        self.decays_on_job_end = settings.on_job_end == "decay"
        self.pace.start(self._last - began)
        JobClock.counted_until = self._last

    def _wanted(self, settings: Settings, began: float, *, fresh: bool) -> dict[str, float]:
        """The times by which a decayed model is wanted, by the setting that wants it."""
        wanted = {}
        if settings.finish_by is not None:
            now = self._last if fresh else None
            wanted["--finish-by"] = read_instant(settings.finish_by, now=now, name="finish_by")
        if settings.time_budget is not None:
            wanted["--time-budget"] = began + read_duration(settings.time_budget, "time_budget") - self.pace.spent
        if settings.on_job_end == "decay" and self._job_end < inf:
            wanted["--on-job-end"] = self._job_end - EXIT
        return wanted

    def updated(self) -> None:
        """An update has ended."""
        self.pace.step(self._lap("steps"))
        if self._last - self._written > _WRITE_EVERY:
            self._write()

    def evaluated(self) -> None:
        """An evaluation has ended."""
        self.pace.evaluation(self._lap("evaluations"))

    def saved(self) -> None:
        """A checkpoint is saved."""
        self.pace.save(self._lap("saves"))
        self._write()

    def _lap(self, kind: str) -> float:
        self._counts[kind] += 1
        last, self._last = self._last, self._clock()
        JobClock.counted_until = self._last
        return self._last - last

    def job_must_end(self) -> bool:
        """Whether only the time to save is left of the job, after one more update and perhaps an evaluation."""
        if self._job_end == inf:
            return False
        work = Work(steps=2, evaluations=min(self._counts["evaluations"], 1), saves=1)
        return self._clock() + self.pace.needed(work) + EXIT > self._job_end

    def decay_must_start(self, step: int, decay_steps: Callable[[int], int]) -> Start | None:
        """`Start` if the decay must start now for the deadline; None: there is time, or no deadline.

        Args:
            step: updates done.
            decay_steps: updates of a decay that starts at a step.
        """
        if self._deadline is None:
            return None

        def ahead(fork: int) -> Work:
            return self._work(fork - step + decay_steps(fork))

        return self._deadline.decide(step, self._clock(), self.pace, ahead)

    def fits_grace(self, decay_steps: int) -> bool:
        """Whether a decay of so many updates ends between SIGTERM and SIGKILL."""
        measured = self._counts["saves"] > 0 and self._counts["steps"] > 0
        grace = min(GRACE, self._job_end - self._clock())
        return measured and self.pace.needed(self._work(decay_steps)) + EXIT < grace

    def _work(self, steps: int) -> Work:
        """So many updates with the evaluations and saves that fall among them, the fork point's and the last ones."""
        among = {kind: ceil(steps * n / max(self._counts["steps"], 1)) for kind, n in self._counts.items()}
        evaluations = among["evaluations"] + 2 if among["evaluations"] else 0
        return Work(steps=steps, evaluations=evaluations, saves=among["saves"] + 2)

    def _read(self) -> Pace:
        """What earlier jobs have measured; without it measuring begins anew."""
        try:
            data = json.loads(self._file.read_text())
            self._counts = {kind: int(data["counts"][kind]) for kind in self._counts}
            return Pace.from_dict(data["pace"])
        except FileNotFoundError:
            return Pace()
        except (OSError, ValueError, KeyError, TypeError, RecordError) as error:
            logger.warning(f"hf_wsd: {self._file} cannot be read ({error}): the times of earlier jobs are not counted")
            return Pace()

    def _write(self) -> None:
        self._written = self._last
        with suppress(OSError):  # training is worth more; the next save tries again
            write_atomically(self._file, to_json({"counts": self._counts, "pace": self.pace.to_dict()}))
