"""The folder of a revision as it is uploaded: a model that loads anywhere, its card, its record, its curve."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from hashlib import sha1, sha256
from math import isfinite
from pathlib import Path
from typing import Any

from hf_wsd.card import make_card
from hf_wsd.checkpoint import check_checkpoint, weights_alone
from hf_wsd.command import scrub_arguments
from hf_wsd.curves import schedule_picture, training_curve
from hf_wsd.errors import PublishError, WSDError
from hf_wsd.history import to_json
from hf_wsd.lineage import RECORD, Lineage, Parent
from hf_wsd.probe import probe
from hf_wsd.revisions import Revision
from hf_wsd.scrubbing import clean, leaks, without_paths

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_MODEL = (
    *("config.json", "generation_config.json", "*processor_config.json", "*.jinja"),
    *("tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model"),
)
_STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json")  # what a resume needs
_KEPT_BACK = (  # of Trainer, Accelerate, DeepSpeed: states that nobody can use elsewhere, arguments with paths
    *_STATE,
    *("training_args.bin", RECORD, "README.md", "optimizer.bin", "optimizer_*", "pytorch_model*", "scheduler.bin"),
    *("random_states_*.pkl", "custom_checkpoint_*.pkl", "sampler*.bin", "dl_state_dict*.bin"),
    *("global_step*", "latest", "zero_to_*.py", "_*"),
)
_TOLERANCE = {"float32": 1e-4}  # of the reloaded model's loss; other devices sum in another order
_TOLERANCE_REDUCED = 3e-2  # of half precision


@dataclass(frozen=True, kw_only=True)
class File:
    """A file to upload, with the names that a hub has for its content.

    Args:
        path: on this machine.
        size: bytes.
        blob: git's sha1 of it, where the hub keeps it as it is.
        sha256: where the hub keeps it as a large file.
    """

    path: Path
    size: int
    blob: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the files of a revision say beside its weights.

    Args:
        repo: USER/NAME.
        siblings: all revisions that are published, this one among them.
        with_optimizer: names of the stable ones that have what an exact resume needs.
        license: identifier of the model's licence, if its owner gave one.
        include: further files of the checkpoint, as patterns.
        exclude: files of the checkpoint that stay here.
    """

    repo: str
    siblings: Sequence[Revision]
    with_optimizer: Collection[str] = ()
    license: str | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()


def make_bundle(revision: Revision, page: Page, folder: Path) -> dict[str, File]:
    """Write the files of a revision into an empty folder; returns them by their names on the hub.

    Weights are hard links where the file system has them.

    Raises:
        PublishError: the losses are not numbers, the checkpoint is damaged, or it holds files nobody said to publish.
    """
    _refuse_diverged(revision)
    state = revision.name in page.with_optimizer
    for file in _chosen(revision, page, state=state):
        _link(file, folder / file.name)
    if not any(folder.glob("*.safetensors")):
        _merge_shards(revision, folder)
    for name in ("config.json", "generation_config.json", "trainer_state.json"):
        _rewrite(folder / name, clean)
    _rewrite(folder / "tokenizer_config.json", without_paths)  # its chat template may look like paths
    public_record(revision).write(folder)
    (folder / "curve.json").write_text(to_json(clean(training_curve(revision))) + "\n")
    schedule_picture(revision, folder / "schedule.png")
    states = page.with_optimizer
    card = make_card(revision, page.siblings, repo=page.repo, with_optimizer=states, license=page.license)
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    return {file.name: _file(file) for file in sorted(folder.iterdir())}


def public_record(revision: Revision) -> Lineage:
    """The record of a revision's checkpoint for other machines: without command, folders, names."""
    record = revision.record
    parent = None if revision.fork is None else Parent(checkpoint=f"step {revision.fork}", step=revision.fork)
    settings = {name: value for name, value in record.settings.items() if name != "branch"}
    public = replace(record, command=None, parent=parent, settings=settings, arguments=(), group="")
    told = {"arguments": list(scrub_arguments(record.arguments)), "group": record.group}
    return Lineage.from_dict(clean(public.to_dict() | told))


def refuse_leaks(revision: Revision, folder: Path, *, secrets: Collection[str] = ()) -> None:
    """Look through what is about to be published.

    Raises:
        PublishError: a file holds a secret, or a folder of this machine.
    """
    if found := list(leaks(folder, secrets=secrets, run=revision.family.path)):
        raise PublishError(f"{revision.name} is not published, it holds what must stay here: {'; '.join(found)}")


def verify(revision: Revision, folder: Path) -> float | None:
    """Load the model that is about to be published, and compare it with the one that was trained.

    Returns:
        Its loss on the sequence of `hf_wsd.probe`; None for a model that has none.

    Raises:
        PublishError: it does not load, misses weights, or gives another loss.
    """
    model = _load(revision, folder)
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise PublishError(f"{revision.name} has weights that are no numbers: {', '.join(broken[:5])}")
    loss, trained = probe(model), revision.record.probe
    if loss is not None and not isfinite(loss):
        raise PublishError(f"{revision.name} loads, but its loss is {loss}")
    if loss is not None and trained is not None:
        tolerance = _TOLERANCE.get(str(model.dtype).removeprefix("torch."), _TOLERANCE_REDUCED)
        if abs(loss - trained) > tolerance * abs(trained):
            raise PublishError(
                f"{revision.name} loads with other weights than were trained: its loss on the sequence of "
                f"hf_wsd.probe is {loss:.6g}, and was {trained:.6g} when {revision.checkpoint} was saved"
            )
    return loss


def _load(revision: Revision, folder: Path) -> Any:
    import transformers

    if not (folder / "config.json").exists():
        raise PublishError(
            f"{revision.checkpoint} has no config.json: save the model's config there, and its tokenizer"
        )
    config = json.loads((folder / "config.json").read_text())
    architecture = (config.get("architectures") or [""])[0]
    factory = getattr(transformers, architecture, transformers.AutoModel)
    try:
        model, told = factory.from_pretrained(folder, dtype="auto", output_loading_info=True, local_files_only=True)
        if any(folder.glob("tokenizer*")):
            transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a user of the model would meet
        raise PublishError(f"{revision.name} cannot be loaded from what would be uploaded: {error}") from error
    if wrong := {
        kind: list(told[kind])[:5] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[kind]
    }:
        raise PublishError(f"{revision.name} does not load whole: {wrong}")
    return model


def _refuse_diverged(revision: Revision) -> None:
    """Losses that are no numbers, in what led to the checkpoint: its own run, and the trunk up to its fork point."""
    own, trunk = revision.run.history, revision.family.history
    rows = [*(row for row in trunk if int(row["step"]) <= (revision.fork or revision.step)), *own]
    for row in rows:
        for name, value in row.items():
            of_it = int(row["step"]) <= revision.step and "loss" in name and isinstance(value, (int, float))
            if of_it and not isfinite(value):
                raise PublishError(f"{revision.name} has diverged: {name} was {value} at step {row['step']}")


def _chosen(revision: Revision, page: Page, *, state: bool) -> Iterator[Path]:
    """The files of the checkpoint that are published, and the model's own from the run's folder where it has none."""
    checkpoint = revision.checkpoint
    if (checkpoint / "adapter_config.json").exists():
        raise PublishError(
            f"{checkpoint} is an adapter, which cannot be published yet: only models that load by themselves can"
        )
    if not weights_alone(checkpoint):
        try:
            check_checkpoint(checkpoint)
        except WSDError as error:
            raise PublishError(f"{revision.name} is not published: {error}") from error
    wanted = (*_WEIGHTS, *_MODEL, *page.include, *(_STATE if state else ()))
    files = [file for file in sorted(checkpoint.iterdir()) if not _matches(file.name, page.exclude)]
    if strange := [file.name for file in files if not _matches(file.name, (*wanted, *_KEPT_BACK))]:
        raise PublishError(
            f"{checkpoint} holds files of no known kind: {', '.join(strange)}. --include {strange[0]} publishes, "
            f"--exclude {strange[0]} leaves it out"
        )
    chosen = {file.name: file for file in files if _matches(file.name, wanted) and file.is_file()}
    if state and (lacking := sorted({"optimizer.pt", "scheduler.pt", "trainer_state.json"} - chosen.keys())):
        raise PublishError(
            f"{checkpoint} has no {', '.join(lacking)}: leave --with-optimizer out (states that FSDP, DeepSpeed or a "
            "script without a Trainer saves cannot be published yet)"
        )
    shared = (file for file in sorted(revision.run.path.iterdir()) if "config.json" not in chosen)
    yield from (file for file in shared if _matches(file.name, _MODEL) and file.is_file())
    yield from chosen.values()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _merge_shards(revision: Revision, folder: Path) -> None:
    """The weights that FSDP has saved as one part for each process, in one file."""
    shards = revision.checkpoint / "pytorch_model_fsdp_0"
    if not shards.is_dir():
        raise PublishError(f"{revision.checkpoint} has no weights in safetensors files, nor FSDP's sharded ones")
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(str(shards), str(folder), safe_serialization=True)


def _link(file: Path, to: Path) -> None:
    with suppress(OSError):
        if file.suffix == ".safetensors":
            return os.link(file.resolve(), to)
    shutil.copy2(file, to)
    return None


def _rewrite(file: Path, change: Any) -> None:
    if file.exists():
        try:
            before = json.loads(file.read_text())
            if not isinstance(before, dict):
                raise ValueError("it is no table of names and values")
        except ValueError as error:
            raise PublishError(f"the checkpoint's {file.name} is damaged: {error}") from error
        if (after := change(before)) != before:
            file.write_text(json.dumps(after, indent=2) + "\n")


def _file(path: Path) -> File:
    """Both names of a file's content, read in one go."""
    size = path.stat().st_size
    blob, large = sha1(b"blob %d\0" % size, usedforsecurity=False), sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            blob.update(chunk)
            large.update(chunk)
    return File(path=path, size=size, blob=blob.hexdigest(), sha256=large.hexdigest())
