"""USER/NAME@REVISION of a hub as a checkpoint on this machine, from which a run goes on as from its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers import TrainerControl, TrainerState

from hf_wsd.checkpoint import check_checkpoint, weights_alone
from hf_wsd.errors import CheckpointError, SettingsError
from hf_wsd.hub import BROKEN
from hf_wsd.lineage import RECORD, Lineage, Parent
from hf_wsd.segment import Phase

STATE = "trainer_state.json"  # has the step: Trainer skips the data up to it
_NO_CHECKPOINT = (".gitattributes", "README.md", "schedule.png", "curve.json")  # beside it, for readers
_SPEC = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")


def read_spec(spec: str) -> tuple[str, str]:
    """The repository and the revision in USER/NAME@REVISION.

    Raises:
        SettingsError: it reads otherwise.

    >>> read_spec("me/small@stable-step800-tokens2.6M")
    ('me/small', 'stable-step800-tokens2.6M')
    """
    if (match := _SPEC.fullmatch(spec)) is None:
        raise SettingsError(
            f"{spec!r} names no published revision: write USER/NAME@REVISION, such as "
            "me/small@stable-step800-tokens2.6M (the model's page lists its revisions)"
        )
    return match[1], match[2]


def fetch(spec: str, folder: Path, *, token: str | None = None, anew: bool = False) -> Path:
    """The checkpoint of a published revision: FOLDER/USER--NAME@REVISION/checkpoint-STEP, whole or not there.

    What was fetched once is not asked for again, also where the revision has moved since; a download that broke off
    goes on. Its record names the commit as its parent.

    Args:
        spec: USER/NAME@REVISION.
        folder: for everything that is fetched.
        token: of the hub; None is the one that is logged in.
        anew: whether the run begins with a new optimizer, as it must where the state was not published.

    Raises:
        SettingsError: the spec cannot be read, or `anew` is not what was published. CheckpointError: there is no such
            revision, it is none from which a run can go on, or it could not be downloaded.
    """
    repo, revision = read_spec(spec)
    home = folder / spec.replace("/", "--")
    for checkpoint in home.glob("checkpoint-*"):
        _refuse_state(spec, weights_alone(checkpoint), anew=anew)
        check_checkpoint(checkpoint, to_resume=not anew)
        return checkpoint
    with _explained(spec, token):
        info = HfApi(token=token).model_info(repo, revision=revision)
    files = {file.rfilename for file in info.siblings or ()} - {*_NO_CHECKPOINT}
    if RECORD not in files:
        raise CheckpointError(f"{spec} has no {RECORD}: it is no revision that `hf-wsd publish` has made")
    new = home / f".{info.sha}"  # of this commit alone: a half download of another is none of its parts
    with _explained(spec, token):  # the record first: it may say no before the weights come
        hf_hub_download(repo, RECORD, revision=info.sha, local_dir=new, token=token)
    _refuse_decay(spec, Lineage.read(new))
    _refuse_state(spec, "optimizer.pt" not in files, anew=anew)
    with _explained(spec, token):
        snapshot_download(repo, revision=info.sha, local_dir=new, token=token, ignore_patterns=list(_NO_CHECKPOINT))
    return _finish(new, spec, files, parent=f"{repo}@{info.sha}")


def _finish(new: Path, spec: str, files: set[str], *, parent: str) -> Path:
    """Check what was downloaded, make it a checkpoint that Trainer resumes, and give it its name."""
    record = Lineage.read(new)
    if STATE not in files:
        batch = record.setup.get("per_device_train_batch_size", 1)  # Trainer compares it, and divides it without a look
        state = {"global_step": record.step, "train_batch_size": batch, "stateful_callbacks": [TrainerControl()]}
        TrainerState(**state).save_to_json(str(new / STATE))
    try:
        missing = sorted(name for name in files if not (new / name).exists())
        problem = f"no {', '.join(missing)}" if missing else ""
        if not problem and check_checkpoint(new, to_resume="optimizer.pt" in files) != record.step:
            problem = f"its record says step {record.step}, {STATE} another"
    except CheckpointError as error:
        problem = str(error)
    if problem:
        shutil.rmtree(new)
        raise CheckpointError(
            f"{spec} cannot be gone on from: {problem}. Nothing is kept of it; repeat the command once"
        )
    replace(record, intent="extend", parent=Parent(checkpoint=parent, step=record.step)).write(new)
    shutil.rmtree(new / ".cache", ignore_errors=True)
    return new.replace(new.with_name(f"checkpoint-{record.step}"))


def _refuse_state(spec: str, missing: bool, *, anew: bool) -> None:
    """Refuse a revision without optimizer state unless the run is to begin anew, and the other way round."""
    if missing and not anew:
        raise SettingsError(
            f"{spec} was published without its optimizer state, so a run cannot go on from it exactly: the optimizer's "
            "moments and the random generators are lost; steps and data go on. Give --rewarmup_steps N to go on so, "
            "the lr climbing from 0 to its peak over N steps (0: at the peak at once, and the loss may jump)"
        )
    if anew and not missing:
        raise SettingsError(
            f"{spec} has its optimizer state, so the run goes on from it exactly: leave --rewarmup_steps out"
        )


def _refuse_decay(spec: str, record: Lineage) -> None:
    """Refuse a revision that is no fork point."""
    if record.step == 0 or record.schedule.phase(record.step - 1) is Phase.DECAY:
        raise CheckpointError(
            f"{spec} is the finished model of a decay, at step {record.step}: fork from a stable- revision of the same "
            "repository, or begin a new run with its weights (--model_name_or_path)"
        )


@contextmanager
def _explained(spec: str, token: str | None) -> Iterator[None]:
    """A block whose errors of the hub say what is wrong with the spec, or that the command can be repeated."""
    repo, revision = read_spec(spec)
    try:
        yield
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"no repository {repo} on {constants.ENDPOINT} that you may read: check its name; a private one needs "
            "`hf auth login`, or a token in HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo} has no revision {revision}{_others(repo, revision, token)}") from None
    except BROKEN as error:
        raise CheckpointError(
            f"{spec} could not be fetched ({type(error).__name__}: {error}). Repeat the command: it goes on with what "
            "has come already"
        ) from error


def _others(repo: str, revision: str, token: str | None) -> str:
    """The fork points that a repository has, the nearest name first."""
    refs = HfApi(token=token).list_repo_refs(repo)
    names = [ref.name for ref in refs.branches if ref.name.startswith("stable-")]
    near = get_close_matches(revision, names, n=1)
    hint = f": did you mean {near[0]!r}?" if near else "."
    return f"{hint} Fork points: {', '.join(names) or 'none is published'}."
