"""Brings the revisions of a family to the hub, each whole or not at all, and keeps the book of what is there."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_wsd.bundle import File, Page, make_bundle, refuse_leaks, verify
from hf_wsd.disk import show_bytes
from hf_wsd.errors import PublishError, UnreachableError
from hf_wsd.history import write_atomically
from hf_wsd.hub import MAIN, Change, Hub
from hf_wsd.lengths import show_tokens
from hf_wsd.revisions import Revision

PUBLISHED = "_published.json"  # in the trunk's folder: what is on the hub, and what failed
_SCRATCH = "_publishing-"  # folders beside it, while a command runs
FIRST_PAUSE = 2.0  # seconds before the second attempt, then twice as long each time
_BESIDE = ("README.md", "curve.json", "schedule.png")  # files that the model itself does not need
_DRAWN = ("schedule.png",)
Content = Mapping[str, Sequence[str]]  # the two names of each file's content


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What one branch of the repository needed, or would need.

    Args:
        branch: its name.
        files: all that it holds now.
        change: what was not there yet.
    """

    branch: str
    files: Mapping[str, File]
    change: Change

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary: commits, files with their bytes, files deleted."""
        sizes = {name: file.size for name, file in self.change.added.items()}
        told = {"added": sizes, "deleted": list(self.change.deleted), "unchanged": len(self.files) - len(sizes)}
        return {"revision": self.branch, "commits": int(bool(self.change)), **told, "bytes": sum(sizes.values())}

    def told(self, repo: str) -> str:
        """What was sent, or would be, in a line."""
        if not self.change:
            return f"{repo}@{self.branch}: unchanged"
        size = show_bytes(sum(file.size for file in self.change.added.values()))
        gone = f", {len(self.change.deleted)} deleted" if self.change.deleted else ""
        return f"{repo}@{self.branch}: 1 commit, {len(self.change.added)} files ({size}){gone}"


class Book:
    """What a trunk's folder knows of its revisions on the hub.

    Args:
        run: the trunk's folder.
        repo: USER/NAME.
    """

    def __init__(self, run: Path, repo: str) -> None:
        self._run, self._repo = run, repo

    @staticmethod
    def read(run: Path) -> dict[str, dict[str, dict[str, Any]]]:
        """Repository, revision, then what is known of it: `commit`, `tag`, `content`, `at`, `failed`.

        Raises:
            PublishError: the file is damaged.
        """
        try:
            entries: dict[str, dict[str, dict[str, Any]]] = json.loads((run / PUBLISHED).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise PublishError(f"{run / PUBLISHED} cannot be read ({error}): delete it and publish again") from error
        return entries

    def note(self, branch: str, **told: Any) -> None:
        """Write down what is new of a revision."""
        entries = self.read(self._run)
        entry = entries.setdefault(self._repo, {}).setdefault(branch, {})
        entry |= told | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
        write_atomically(self._run / PUBLISHED, json.dumps(entries, indent=1) + "\n")

    def longest(self, siblings: Sequence[Revision]) -> list[Revision]:
        """The decayed model that is `main`; none where a longer one is on the hub whose checkpoint is gone here."""
        known = self.read(self._run).get(self._repo, {})
        found = (re.match(r"decay-step(\d+)", name) for name, entry in known.items() if entry.get("commit"))
        there = max((int(one[1]) for one in found if one), default=0)
        return [one for one in siblings if one.kind == "decay" and one.step >= there][-1:]

    def knows(self, branch: str, change: Change) -> bool:
        """Whether what a branch holds now was published from here, or is a new repository's nothing."""
        entry = self.read(self._run).get(self._repo, {}).get(branch, {})
        content: Content = entry.get("content", {})  # also of a commit whose answer was lost
        ours = change.theirs.keys() == content.keys() and all(change.theirs[name] in content[name] for name in content)
        return change.head in (None, entry.get("commit")) or not change.theirs or ours


def send(
    chosen: Sequence[Revision],
    page: Page,
    *,
    hub: Hub,
    private: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    attempts: int = 3,
    secrets: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> list[Sent]:
    """Bring revisions to the hub; what is there already is left alone. `main` comes last.

    Args:
        chosen: revisions of one family.
        page: what their cards say; the last decayed model among its siblings is `main`.
        hub: the repository, made if it is not there.
        private: of a repository that is made.
        overwrite: also what somebody else has changed.
        dry_run: change nothing, here or there.
        attempts: how often to try where the connection breaks.
        secrets: texts that no file may hold.
        tell: gets a line for each revision.

    Raises:
        PublishError: a model is not fit to be published, or the hub says no; what was done before stays.
    """
    book = Book(chosen[0].family.path, page.repo)
    longest = book.longest(page.siblings)
    for left_over in () if dry_run else chosen[0].family.path.glob(f"{_SCRATCH}*"):  # of a command that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with TemporaryDirectory(prefix=_SCRATCH, dir=chosen[0].family.path) as scratch:
        sendings = []
        for revision in chosen:
            folder = Path(scratch) / revision.name
            folder.mkdir()
            files = make_bundle(revision, page, folder)
            refuse_leaks(revision, folder, secrets=secrets)
            check = cache(partial(verify, revision, folder))
            sending = _Sending(hub, book, revision.name, files, _message(revision), check, overwrite, page.license)
            sendings += [sending, *([replace(sending, branch=MAIN)] if revision in longest else [])]
        sent = []
        for sending in sorted(sendings, key=lambda sending: sending.branch == MAIN):
            sent.append(sending.compare() if dry_run else sending.until_done(private, attempts=attempts, tell=tell))
            if not dry_run:
                tell(sent[-1].told(page.repo))
    return sent


@dataclass(frozen=True)
class _Sending:
    """One branch on its way."""

    hub: Hub
    book: Book
    branch: str
    files: Mapping[str, File]
    message: str
    check: Callable[[], object]  # that the model is what was trained
    overwrite: bool
    license: str | None

    def compare(self) -> Sent:
        """What has to be done, as far as the hub can be asked.

        Raises:
            PublishError: somebody else has changed the branch.
        """
        change = self.hub.change(self.branch, self.files)
        if "curve.json" not in change.added:  # another release of matplotlib draws the same curve with other bytes
            added = {name: file for name, file in change.added.items() if name not in _DRAWN}
            change = replace(change, added=added)
        if change and not self.overwrite and not self.book.knows(self.branch, change):
            raise PublishError(
                f"{self.branch} of {self.hub.repo} is at commit {str(change.head)[:12]}, which was not published from "
                "this run: somebody has changed it, and nothing is overwritten. Look at it; --overwrite replaces it"
            )
        if any(name not in _BESIDE for name in change.added):
            self.check()
        return Sent(branch=self.branch, files=self.files, change=change)

    def until_done(self, private: bool, *, attempts: int, tell: Callable[[str], None]) -> Sent:
        """Send it, again after a pause where the connection breaks; a failure is in the book."""
        for attempt in range(attempts):
            try:
                self.hub.create(private=private)
                return self._send()
            except PublishError as error:
                self.book.note(self.branch, failed=str(error))
                if attempt + 1 >= attempts or not isinstance(error, UnreachableError):
                    raise
                pause = FIRST_PAUSE * 2**attempt
                tell(f"{error}: trying again in {pause:g} s")
                time.sleep(pause)
        raise AssertionError("no attempt was made")

    def _send(self) -> Sent:
        sent = self.compare()
        content = {name: [file.blob, file.sha256] for name, file in self.files.items()}
        self.book.note(self.branch, content=content)  # now: the answer to the commit may be lost
        commit = sent.change.head
        if commit is None:
            commit = self.hub.commit_new(self.branch, self.files, self.message)
        elif sent.change:
            commit = self.hub.commit(self.branch, sent.change, self.message)
        tag = None if self.branch == MAIN else self.hub.finish(self.branch)
        self.book.note(self.branch, commit=commit, tag=tag, failed=None, license=self.license)
        return sent


def _message(revision: Revision) -> str:
    tokens = "" if revision.tokens is None else f", {show_tokens(revision.tokens)} tokens"
    what = "fork point" if revision.fork is None else f"decayed from step {revision.fork}"
    return f"{revision.name}: step {revision.step}{tokens}, {what}"
