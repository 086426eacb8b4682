"""A decay asked of a *running* job: the wish, the answer, and the decision that a crash does not undo.

    RUN/_decay-request.json   the wish, from another shell
    RUN/_decay-answer.json    what the job said
    RUN/_decay.json           the decision, written before the job acts on it; a resume of the run follows it

The leading underscore keeps them out of Trainer's uploads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from hf_wsd.errors import ForkError, ResumeError, SettingsError, unknown
from hf_wsd.history import to_json, write_atomically
from hf_wsd.plan import Decay, Plan
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase
from hf_wsd.shape_lookup import find_shape

REQUEST, ANSWER, DECISION = "_decay-request.json", "_decay-answer.json", "_decay.json"
THEN = ("stop", "continue")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A wish for a decay now.

    Raises:
        SettingsError: an unknown `then`.

    Args:
        by: who asks: "hf-wsd decay", "SIGUSR1", "the script", "--finish-by", "--time-budget" or "--on-job-end".
        num_decay_steps, decay_fraction, decay_type, decay_params, min_lr_ratio: of the decay; None is the run's own.
        then: "stop" with the decayed model, or "continue" the trunk from the fork point; None is the script's own.
        extend: let the run grow past its planned end where the decay needs it.
        id: of this wish, so that its answer is known.

    >>> Request(by="SIGUSR1").length()
    {}
    """

    by: str
    num_decay_steps: int | str | None = None
    decay_fraction: float | None = None
    decay_type: str | None = None
    decay_params: Mapping[str, float] | None = None
    min_lr_ratio: float | None = None
    then: str | None = None
    extend: bool = False
    id: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if self.then not in (None, *THEN):
            raise SettingsError(unknown("value of --then", self.then, THEN))

    def length(self) -> dict[str, Any]:
        """The decay's length, as `Plan.of_forks` takes it; empty where the wish has none."""
        asked = {"num_decay_steps": self.num_decay_steps, "decay_fraction": self.decay_fraction}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a running job will do: decay from `fork` to `end` on `schedule`.

    Args:
        fork: updates done when the decay starts.
        end: where the decayed model ends.
        schedule: the whole schedule, past and decay.
        by: who asked.
        then: "stop", or "continue": the decay is a branch, and the trunk goes on from the fork point.
        stops_first: the job cannot reach `end` itself: it ends at the fork, and its command goes on from there.

    >>> from tempfile import TemporaryDirectory
    >>> from hf_wsd.builders import wsd
    >>> trunk = wsd(num_warmup_steps=10, num_decay_steps=0)
    >>> decision = decide(Request(by="SIGUSR1"), trunk, step=90, planned_end=200, settings={})
    >>> decision.fork, decision.end, str(decision.schedule)
    (90, 100, 'warmup linear 0 -> 1, 10 steps; stable at 1, 80 steps; decay 1-sqrt 1 -> 0, 10 steps')
    >>> with TemporaryDirectory() as run:
    ...     decision.write(Path(run))
    ...     Decision.read(Path(run)) == decision
    True
    """

    fork: int
    end: int
    schedule: Schedule
    by: str
    then: str = "stop"
    stops_first: bool = False

    @property
    def decay(self) -> Decay:
        """Fork point and end, as `hf_wsd.forking.fork` takes them."""
        return Decay(fork=self.fork, end=self.end)

    def write(self, run: Path) -> None:
        """Write the decision into a run's folder, whole or not at all."""
        write_atomically(run / DECISION, to_json(asdict(self) | {"schedule": self.schedule.to_dict()}, indent=1))

    @classmethod
    def read(cls, run: Path) -> Decision | None:
        """The decision of a run, or None.

        Raises:
            ResumeError: it cannot be read.
        """
        try:
            data = json.loads((run / DECISION).read_text())
            return cls(**data | {"schedule": Schedule.from_dict(data["schedule"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"{run / DECISION}, which says where the decay of this run starts, cannot be read ({error}). Delete it "
                "to go on without that decay"
            ) from error

    def __str__(self) -> str:
        return f"decay from step {self.fork}, the model ends at step {self.end} (asked by {self.by})"


def decide(
    request: Request,
    schedule: Schedule,
    *,
    step: int,
    planned_end: int,
    settings: Mapping[str, Any],
    **per_step: int | None,
) -> Decision:
    """What a job at `step` makes of a wish.

    Args:
        request: the wish.
        schedule: of the run.
        step: updates done.
        planned_end: where the job would stop: more updates it cannot make.
        settings: the run's own, for what the wish leaves open.
        per_step: tokens_per_step and samples_per_step, for lengths in them.

    Raises:
        ForkError: the run is in its warm-up or in a decay, or the decay would pass the planned end.

    >>> from hf_wsd.builders import wsd
    >>> trunk = wsd(num_warmup_steps=10, num_decay_steps=0)
    >>> decide(Request(by="SIGUSR1", num_decay_steps=50), trunk, step=90, planned_end=100, settings={})
    Traceback (most recent call last):
        ...
    hf_wsd.errors.ForkError: a decay from step 90 to 140 would pass the planned end at step 100: ask for at most 10 \
decay steps or ask for --extend
    """
    length = request.length() or {k: settings[k] for k in ("num_decay_steps", "decay_fraction") if k in settings}
    (decay,) = Plan.of_forks([step], **per_step, **length).decays
    shape = decay_shape(
        schedule,
        settings,
        decay_type=request.decay_type,
        decay_params=request.decay_params,
        min_lr_ratio=request.min_lr_ratio,
    )
    forked = schedule.fork(step, decay_steps=decay.steps, **shape)
    if decay.end > planned_end and not (request.extend and schedule.total_steps is None):
        most = planned_end - step
        repair = " or ".join(
            [f"ask for at most {most} decay steps"] * (most > 0) + ["ask for --extend"] * (schedule.total_steps is None)
        )
        raise ForkError(
            f"a decay from step {step} to {decay.end} would pass the planned end at step {planned_end}: {repair}"
        )
    return Decision(
        fork=step,
        end=decay.end,
        schedule=forked,
        by=request.by,
        then=request.then or "stop",
        stops_first=decay.end > planned_end,
    )


def decay_shape(
    schedule: Schedule,
    settings: Mapping[str, Any],
    *,
    decay_type: str | None = None,
    decay_params: Mapping[str, float] | None = None,
    min_lr_ratio: float | None = None,
) -> dict[str, Any]:
    """Shape, parameters and minimum of a decay that leaves a run, as `Schedule.fork` takes them.

    What is not given is the run's own: as its settings say, or as the decays of its line of cycles are.

    >>> from hf_wsd.builders import wsd
    >>> decay_shape(wsd(num_decay_steps=0), {"decay_type": "linear", "min_lr_ratio": 0.1})
    {'shape': 'linear', 'final': 0.1, 'params': None}
    """
    own = next((s for s in schedule.segments if s.phase is Phase.DECAY and s.shape != "constant"), None)  # of a line
    if decay_type is None:  # parameters belong to their shape
        decay_type = settings.get("decay_type") or (own.shape if own else "1-sqrt")
        decay_params = decay_params or settings.get("decay_params")
    if min_lr_ratio is None and find_shape(decay_type).own_end is None:
        min_lr_ratio = settings.get("min_lr_ratio", own.end if own else None)
    return {"shape": decay_type, "final": min_lr_ratio, "params": decay_params}


def must_wait(schedule: Schedule, step: int) -> bool:
    """Whether a decay at `step` has to wait for the end of the warm-up.

    >>> from hf_wsd.builders import wsd
    >>> [must_wait(wsd(num_warmup_steps=10, num_decay_steps=0), step) for step in (9, 10)]
    [True, False]
    """
    return step == 0 or (schedule.phase(step - 1) is Phase.WARMUP and schedule.phase(step) is Phase.WARMUP)


def write_request(run: Path, request: Request) -> None:
    """Ask the job that trains in `run`; an older wish is replaced.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     write_request(Path(run), Request(by="hf-wsd decay", then="continue", id="1"))
    ...     read_request(Path(run)).then
    'continue'
    """
    (run / ANSWER).unlink(missing_ok=True)
    write_atomically(run / REQUEST, to_json(asdict(request)))


def read_request(run: Path) -> Request | None:
    """The wish that waits in a run's folder; one that cannot be read is an answer to be given.

    Raises:
        ForkError: it cannot be read.

    >>> read_request(Path("nowhere")) is None
    True
    """
    try:
        data = json.loads((run / REQUEST).read_text())
        known = {f.name for f in fields(Request)}
        if not isinstance(data, dict) or not data.keys() <= known:
            raise ValueError(f"its fields are {', '.join(sorted(known))}")
        return Request(**data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ForkError(f"{run / REQUEST} cannot be read: {error}") from error


def answer(run: Path, id: str, *, said: str, accepted: bool) -> None:
    """Tell who asked what comes of it, and take the wish away.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     write_request(Path(run), Request(by="hf-wsd decay", id="1"))
    ...     answer(Path(run), "1", said="decay from step 90", accepted=True)
    ...     read_answer(Path(run), "1"), read_request(Path(run))
    (('decay from step 90', True), None)
    """
    write_atomically(run / ANSWER, to_json({"id": id, "said": said, "accepted": accepted}))
    (run / REQUEST).unlink(missing_ok=True)


def read_answer(run: Path, id: str) -> tuple[str, bool] | None:
    """What the job said to the wish of that id, and whether it accepts; None while it has not.

    >>> read_answer(Path("nowhere"), "1") is None
    True
    """
    try:
        data = json.loads((run / ANSWER).read_text())
        return (str(data["said"]), bool(data["accepted"])) if data["id"] == id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
