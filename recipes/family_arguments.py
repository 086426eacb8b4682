"""How long a run of the recipes is and which decays it has: arguments, their settings, and where a run goes on."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

import hf_wsd
from hf_wsd.by_name import NAMES, build_schedule
from hf_wsd.checkpoint import FORK_POINTS, newest_whole
from hf_wsd.damage import mend
from hf_wsd.errors import RunError, SettingsError
from hf_wsd.extending import point_to_extend
from hf_wsd.fetching import fetch
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.mending import link_checkpoint, refuse_damage
from hf_wsd.plan import Plan
from hf_wsd.schedule import Schedule
from hf_wsd.settings import Settings

LINES = ("wsd_s", "cyclic_cosine")  # one run, a finished model at the end of every cycle

logger = logging.getLogger(__name__)


@dataclass
class FamilyArguments:
    """How long, and with which decay."""

    trunk: bool = field(default=False, metadata={"help": "No decays: only the trunk, up to the last fork point."})
    budgets: list[str] = field(
        default_factory=list,
        metadata={"help": "Lengths of the decayed models: tokens (2M, 1.5B) or steps (3000)."},
    )
    decay_fraction: float | None = field(default=None, metadata={"help": "Decay steps / steps of the model; 0.1."})
    decay_type: str | None = field(default=None, metadata={"help": "Shape of the decay; 1-sqrt."})
    then: str = field(default="stop", metadata={"help": "After a decay on demand: stop, or continue the trunk."})
    keep_every: str | None = field(default=None, metadata={"help": "Keep a checkpoint for good every so many steps."})
    finish_by: str | None = field(default=None, metadata={"help": "Decay so that all ends before: 2026-12-01T08:00."})
    time_budget: str | None = field(default=None, metadata={"help": "The same as a duration over all jobs: 23h."})
    job_time_limit: str | None = field(default=None, metadata={"help": "Save and exit before: 4h; default: Slurm's."})
    on_job_end: str | None = field(default=None, metadata={"help": "save, or decay where the time allows it; save."})
    allow: list[str] = field(
        default_factory=list, metadata={"help": "Differences to the checkpoint's run that are meant: learning_rate."}
    )


@dataclass
class ForkArguments:
    """Which published fork point a new run leaves."""

    fork_from: str | None = field(default=None, metadata={"help": "USER/NAME@REVISION: a fork point on a hub."})
    rewarmup_steps: int | None = field(
        default=None, metadata={"help": "Steps back to the peak lr where that has no optimizer state; 0: none."}
    )


def register_family(family: FamilyArguments, kind: str, per_step: dict[str, int]) -> None:
    """Hand the family's arguments to the schedule: a line of cycles ends one at every budget."""
    settings = {name: value for name, value in vars(family).items() if name != "then"}
    settings |= per_step  # a stream cannot be asked for a sample's length
    if kind in LINES:
        settings["cycle_ends"] = settings.pop("budgets")
    elif kind != "wsd":  # another baseline takes its length from the budget, and nothing else
        left_out = ("budgets", *(() if kind in NAMES else per_step))
        settings = {name: value for name, value in settings.items() if name not in left_out}
    asked = Settings.make(**{name: value for name, value in settings.items() if value}).given()
    before = Settings.from_env()
    for name, value in before.given().items() if not before.branch else ():
        if asked.get(name, value) != value:
            raise SettingsError(f"{name} is given twice: {value} by the launcher or HF_WSD_*, {asked[name]} here")
    hf_wsd.register(**asked)


def set_length(family: FamilyArguments, args: TrainingArguments, per_step: dict[str, int]) -> Plan:
    """Turn the budgets into max_steps, the end of the one model, of the line of cycles or of the trunk; their plan."""
    settings = Settings.from_env()
    if settings.branch or not family.budgets:  # a branch's length is in its record
        return Plan(decays=())
    line = args.lr_scheduler_type in LINES
    if len(family.budgets) > 1 and not settings.trunk and not line:
        raise SettingsError(
            f"{len(family.budgets)} budgets need --trunk, then `hf-wsd decay {args.output_dir}`; or in one line of "
            "cycles, --lr_scheduler_type wsd_s"
        )
    plan = Plan.of_budgets(family.budgets, **per_step, **({} if line else settings.decay_kwargs()))
    if args.max_steps <= 0:
        args.max_steps = plan.trunk_steps if settings.trunk else plan.decays[-1].end
    return plan


def start_from_published(fork: ForkArguments, args: TrainingArguments) -> None:
    """Have a new run begin at the fork point that was published; one that has begun already goes on.

    Args:
        fork: which, and how the lr comes back where it has no optimizer state.
        args: of the run; `resume_from_checkpoint` is set.
    """
    if fork.fork_from is None or Settings.from_env().branch:  # a branch has a checkpoint of its run
        if fork.fork_from is None and fork.rewarmup_steps is not None:
            raise SettingsError("--rewarmup_steps is for --fork_from; later cycles of wsd_s have num_rewarmup_steps")
        return
    if args.resume_from_checkpoint:
        raise SettingsError(
            f"--fork_from {fork.fork_from} and --resume_from_checkpoint {args.resume_from_checkpoint} are two places "
            "to start from: keep one (a repeated command goes on by itself)"
        )
    run, anew = Path(args.output_dir), fork.rewarmup_steps is not None
    with args.main_process_first(desc="the fork point"):  # it alone asks the hub: the others find what it has fetched
        checkpoint = fetch(fork.fork_from, run / "_fetched", token=args.hub_token, anew=anew)
        kept = run / FORK_POINTS / checkpoint.name
        if Settings.from_env().trunk and not anew and not kept.exists():  # the run's own branches may leave it too
            link_checkpoint(checkpoint, kept)
    record, begun = Lineage.read(checkpoint), newest_whole(run)[0]
    if begun is None:
        args.resume_from_checkpoint = str(checkpoint)
    elif (begun / RECORD).exists() and (left := Lineage.read(begun).parent) != record.parent:
        where = left.checkpoint if left else "no published revision"
        raise RunError(f"{run} was begun from {where}, not from {fork.fork_from}: give another --output_dir")
    if anew:
        hf_wsd.register(rewarmup_at=record.step, rewarmup_steps=fork.rewarmup_steps)


def resume_point(args: TrainingArguments) -> str | None:
    """The checkpoint that was named, or else the newest whole one of an earlier try in the same folder."""
    if args.resume_from_checkpoint:
        return args.resume_from_checkpoint
    settings = Settings.from_env()
    if args.lr_scheduler_type in NAMES:
        mend(Path(args.output_dir), settings)
    newest, damage = newest_whole(Path(args.output_dir))
    refuse_damage(damage, settings.on_damage)
    for problem in damage:
        logger.warning("passed over: %s", problem)
    if newest is not None and (asked := asked_schedule(args)):
        newest, why = point_to_extend(Path(args.output_dir), newest, asked)
        if why:
            logger.warning("%s", why)
    return None if newest is None else str(newest)


def asked_schedule(args: TrainingArguments) -> Schedule | None:
    """The schedule that the run will ask for; None where only the Trainer knows its length."""
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if name not in NAMES or args.max_steps <= 0:
        return None
    ratio = 0 < args.warmup_steps < 1
    warmup_steps = args.get_warmup_steps(args.max_steps) if ratio else int(args.warmup_steps)
    kwargs = getattr(args, "lr_scheduler_kwargs", None)  # the recipe without a Trainer has none
    length = {"num_training_steps": args.max_steps, "num_warmup_steps": warmup_steps}
    return build_schedule(name, **length, kwargs=kwargs)
