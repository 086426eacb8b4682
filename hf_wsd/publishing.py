"""`hf-wsd publish`: each decayed model of a family becomes a revision on the hub, the longest is `main` too."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_wsd.disk import show_bytes
from hf_wsd.errors import PublishError, unknown
from hf_wsd.family import Run, read_run
from hf_wsd.lengths import Length
from hf_wsd.lineage import BRANCHES
from hf_wsd.lock import release, take_lock
from hf_wsd.revisions import Revision, revisions

if TYPE_CHECKING:
    from hf_wsd.bundle import Page
    from hf_wsd.sending import Sent

_ALL = "all"
_LOCK = "_publish-lock"  # of its own: training goes on while its models are published
_SHOWN = ("commit", "tag", "failed", "at")
_REPO = re.compile(r"([\w.-]+/)?[\w.-]+")
Patterns = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Other files of the checkpoints, too.")]


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A trunk, or the folder of a branch.", show_default=False)],
    repo: Annotated[str | None, typer.Option(metavar="USER/NAME", help="The family's repository on the hub.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="These revisions alone.")] = None,
    stable: Annotated[
        list[str] | None, typer.Option(metavar="STEP|all", help="Fork points too: steps, tokens, or all that are kept.")
    ] = None,
    with_optimizer: Annotated[
        bool, typer.Option("--with-optimizer", help="Fork points with what an exact fork of others needs.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="Licence of the models: apache-2.0, mit, ...")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    include: Patterns = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Files that stay here.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also what somebody else has changed.")] = False,
    attempts: Annotated[int, typer.Option(min=1, help="How often to try where the connection breaks.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files, sizes and commits.")] = False,
    status: Annotated[bool, typer.Option("--status", help="List what is on the hub and what failed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Publish RUN's decayed models, each as a revision of one repository; a repeated command sends what changed."""
    from hf_wsd.bundle import Page
    from hf_wsd.sending import Book

    with _turn(run, waits=not (status or dry_run)):
        family, own = _family(run)
        book = Book.read(family.path)
        known = book.get(repo := _repo(repo, book, family), {})
        siblings, new = _siblings(family, stable, known)
        if status:
            return _show_status(siblings, known, repo, as_json=as_json)
        page = Page(
            repo=repo,
            siblings=siblings,
            with_optimizer=_states_before(known) | (new if with_optimizer else set()),
            license=license or next((entry["license"] for entry in known.values() if entry.get("license")), None),
            include=include or (),
            exclude=exclude or (),
        )
        options = {"private": not public, "overwrite": overwrite, "dry_run": dry_run, "attempts": attempts}
        sent = _send(_chosen(siblings, only, own), page, **options)
    _tell(sent, family, repo, dry_run=dry_run, as_json=as_json)


def _tell(sent: Sequence[Sent], family: Run, repo: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"repo": repo, "dry_run": dry_run, "revisions": [one.to_dict() for one in sent]}, indent=1))
    elif dry_run:
        print("\n".join(_listed(sent, repo)))
    for unfinished in _unfinished(family):
        print(f"not published: {unfinished}", file=sys.stderr)


def _listed(sent: Sequence[Sent], repo: str) -> Iterator[str]:
    for one in sent:
        yield one.told(repo)
        yield from (f"  {name}  {show_bytes(file.size)}" for name, file in one.change.added.items())


def _siblings(
    family: Run, stable: Sequence[str] | None, known: Mapping[str, Any]
) -> tuple[tuple[Revision, ...], set[str]]:
    """All revisions that are or will be on the hub, and the names of the fork points that were asked for now."""
    points = _fork_points(family, stable)
    siblings = revisions(family, stable=None if points is None else {*points, *_published_before(known, family)})
    fork_points = (found for found in siblings if found.kind == "stable")
    return siblings, {found.name for found in fork_points if points is None or found.step in points}


def _states_before(known: Mapping[str, Any]) -> set[str]:
    """The revisions that have been published with their optimizer state."""
    return {name for name, entry in known.items() if "optimizer.pt" in entry.get("content", {})}


def _send(chosen: Sequence[Revision], page: Page, **options: Any) -> list[Any]:
    from huggingface_hub import get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from hf_wsd.hub import Hub
    from hf_wsd.sending import send

    if not sys.stderr.isatty():
        disable_progress_bars()
    token = get_token()
    tell = partial(print, file=sys.stderr, flush=True)
    return send(chosen, page, hub=Hub(page.repo), secrets=[token] if token else [], tell=tell, **options)


def _root(folder: Path) -> Path:
    """The trunk's folder of the family that a folder belongs to."""
    root = folder.resolve()
    while root.parent.name == BRANCHES:
        root = root.parent.parent
    return root


def _family(folder: Path) -> tuple[Run, Path]:
    """The family that a folder belongs to, and the folder of the run itself."""
    root, own = _root(folder), folder.resolve()
    return read_run(root if root != own else folder), own


@contextmanager
def _turn(folder: Path, *, waits: bool) -> Iterator[None]:
    """A block that one `hf-wsd publish` of a family runs at a time: each sees all that is on the hub before it."""
    lock, root = None, _root(folder)
    if waits and root.is_dir():
        with suppress(ImportError, OSError):  # a system without locks, a folder that cannot be written
            try:
                lock = take_lock(root, name=_LOCK)
            except BlockingIOError:
                print(f"another `hf-wsd publish` is at work in {root}: waiting for it", file=sys.stderr, flush=True)
                lock = take_lock(root, name=_LOCK, patience=inf)
    try:
        yield
    except OSError as error:
        raise PublishError(f"the files of {root} could not be made ready ({error}): repeat the command") from error
    finally:
        if lock is not None:
            release(lock)


def _chosen(siblings: Sequence[Revision], only: Sequence[str] | None, own: Path) -> list[Revision]:
    """The revisions that were asked for: all of a trunk, or those of the branch whose folder was given."""
    names = [revision.name for revision in siblings]
    if strange := [name for name in only or () if name not in names]:
        raise PublishError(unknown("revision", strange[0], names))
    root = siblings[0].family.path.resolve()
    found = [revision for revision in siblings if own in (root, revision.run.path.resolve())]
    if not found:
        raise PublishError(f"{own} has no finished decay: the family has {', '.join(names)}")
    return [revision for revision in found if not only or revision.name in only]


def _repo(given: str | None, book: Mapping[str, Any], family: Run) -> str:
    """The repository: as given, or the one that the family was published to before."""
    if given is None and len(book) == 1:
        return next(iter(book))
    if given is None:
        raise PublishError(f"--repo USER/NAME says where {family.path} is published to" + _and_before(book))
    if not _REPO.fullmatch(given):
        raise PublishError(f"{given!r} is no repository: --repo takes USER/NAME, of letters, digits, '-', '_' and '.'")
    return given


def _and_before(book: Mapping[str, Any]) -> str:
    return f" (before: {', '.join(book)})" if book else ""


def _fork_points(family: Run, wanted: Sequence[str] | None) -> set[int] | None:
    """The steps of --stable; None is all that are kept."""
    if wanted == [_ALL]:
        return None
    per_step = family.identity.tokens_per_step
    return {Length(text).steps(per_step) for text in wanted or ()}


def _published_before(known: Mapping[str, Any], family: Run) -> Iterator[int]:
    """Steps of the fork points that are on the hub already, where the checkpoint is still here."""
    for found in revisions(family, stable=None):
        if found.kind == "stable" and found.name in known:
            yield found.step


def _unfinished(family: Run) -> Iterator[str]:
    for member in family.walk(rewound=False):
        for _, end in member.decays():
            if not member.has_saved(end):
                where = "" if member is family else f" of {member.path.name}"
                yield f"the decay{where} to step {end}, which is at step {member.steps_done}"


def _show_status(
    siblings: Sequence[Revision], known: Mapping[str, Mapping[str, Any]], repo: str, *, as_json: bool
) -> None:
    """A line for each revision, and for those on the hub whose checkpoint is gone here."""
    rows = []
    for name in dict.fromkeys([*(revision.name for revision in siblings), *known]):
        entry = known.get(name, {})
        state = "failed" if entry.get("failed") else "published" if entry.get("commit") else "not published"
        rows.append(
            {"revision": name, "state": state, **{key: entry.get(key) for key in ("commit", "tag", "failed", "at")}}
        )
    if as_json:
        return print(json.dumps({"repo": repo, "revisions": rows}, indent=1))
    for row in rows:
        where = f", commit {row['commit'][:12]}" if row["commit"] else ""
        tag = f", tag {row['tag']}" if row["tag"] else ""
        why = f" at {row['at']}: {row['failed']}" if row["failed"] else ""
        print(f"{row['revision']}: {row['state']}{why}{where}{tag}")
    return None
