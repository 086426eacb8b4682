"""A family's repository on the hub: what is there, and how a revision comes to be there whole or not at all.

Large files are uploaded first, where nobody sees them. Then one commit makes the revision: a new one on a branch of its
own, `publishing-NAME`, from which NAME is made when the commit is whole; then the tag `NAME-v1`, which never moves.
`parent_commit` goes with each commit: what somebody else has changed in the meantime is refused by the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from hf_wsd.errors import PublishError, UnreachableError

if TYPE_CHECKING:
    from hf_wsd.bundle import File

MAIN = "main"
STAGING = "publishing-"
_THE_HUBS_OWN = ".gitattributes"
_LARGE = ("safetensors", "pt", "pth", "png")
BROKEN: tuple[type[Exception], ...] = (OSError, RuntimeError, *HfHubHTTPError.__bases__)  # also the http library's own


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a commit would do to a revision.

    Args:
        head: commit that the revision is at; None where it is not there yet.
        added: files that are new or differ, by name.
        deleted: names of files that go.
        theirs: what the revision holds now: name to content.
    """

    head: str | None
    added: Mapping[str, File]
    deleted: tuple[str, ...]
    theirs: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.head is None or self.added or self.deleted)


class Hub:
    """One repository.

    Args:
        repo: USER/NAME.
        token: of a user who may write there; None is that of HF_TOKEN or `hf auth login`.
    """

    def __init__(self, repo: str, *, token: str | None = None) -> None:
        self.repo = repo
        self._api = HfApi(token=token, library_name="hf_wsd")

    def create(self, *, private: bool) -> None:
        """Make the repository, unless it is there."""
        if MAIN in self.heads:
            return
        with self._asked():
            self.repo = self._api.create_repo(self.repo, private=private, exist_ok=True).repo_id
            self._forget()
            if MAIN not in self.heads:  # other servers than the hub make it without a first commit
                large = "".join(f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in _LARGE)
                first = [CommitOperationAdd(_THE_HUBS_OWN, large.encode())]
                self._api.create_commit(self.repo, first, commit_message="initial commit", revision=MAIN)
                self._forget()

    @cached_property
    def _refs(self) -> Any:
        with self._asked():
            try:
                return self._api.list_repo_refs(self.repo)
            except RepositoryNotFoundError:
                return None

    @property
    def heads(self) -> dict[str, str]:
        """Commit of each branch; empty where there is no such repository."""
        return {ref.name: ref.target_commit for ref in self._refs.branches} if self._refs else {}

    @property
    def tags(self) -> dict[str, str]:
        """Commit of each tag."""
        return {ref.name: ref.target_commit for ref in self._refs.tags} if self._refs else {}

    def change(self, branch: str, files: Mapping[str, File]) -> Change:
        """What has to be done so that a branch holds these files and no others."""
        head = self.heads.get(branch)
        theirs = self._contents(head) if head else {}
        added = {name: file for name, file in files.items() if theirs.get(name) not in (file.blob, file.sha256)}
        deleted = tuple(sorted(theirs.keys() - files.keys()))
        return Change(head=head, added=added, deleted=deleted, theirs=theirs)

    def _contents(self, commit: str) -> dict[str, str]:
        with self._asked():
            try:
                tree = list(self._api.list_repo_tree(self.repo, recursive=True, revision=commit))
            except RevisionNotFoundError:
                return {}
        files = (entry for entry in tree if isinstance(entry, RepoFile) and entry.path != _THE_HUBS_OWN)
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    def commit(self, branch: str, change: Change, message: str) -> str:
        """Make the change in one commit; returns the commit.

        Raises:
            PublishError: the branch is no longer where it was when the change was worked out.
        """
        operations: list[Any] = [CommitOperationDelete(name) for name in change.deleted]
        operations += [CommitOperationAdd(name, str(file.path)) for name, file in change.added.items()]
        with self._asked(branch):
            options: dict[str, Any] = {"revision": branch, "parent_commit": change.head}
            done = self._api.create_commit(self.repo, operations, commit_message=message, **options)
        self._forget()
        return str(done.oid)

    def commit_new(self, branch: str, files: Mapping[str, File], message: str) -> str:
        """Make a branch that holds these files and no others, visible only when it is whole; returns its commit."""
        staging = STAGING + branch
        if staging not in self.heads:
            with self._asked(staging):
                self._api.create_branch(self.repo, branch=staging, revision=MAIN)
            self._forget()
        change = self.change(staging, files)
        commit = self.commit(staging, change, message) if change else str(change.head)
        with self._asked(branch):
            self._api.create_branch(self.repo, branch=branch, revision=commit)
        self._forget()
        return commit

    def finish(self, branch: str) -> str:
        """Give the commit of a branch its tag, unless it has one, and clear up; returns the tag."""
        head = self.heads[branch]
        versions = re.compile(rf"{re.escape(branch)}-v(\d+)")
        numbers = {int(found[1]): commit for tag, commit in self.tags.items() if (found := versions.fullmatch(tag))}
        tag = next((f"{branch}-v{number}" for number, commit in numbers.items() if commit == head), None)
        with self._asked(branch):
            if tag is None:
                tag = f"{branch}-v{max(numbers, default=0) + 1}"
                self._api.create_tag(self.repo, tag=tag, revision=head)
            if STAGING + branch in self.heads:
                self._delete(STAGING + branch)
        self._forget()
        return tag

    def _delete(self, branch: str) -> None:
        """Delete a branch where the server can and the token may: without it, all else is done."""
        try:
            self._api.delete_branch(self.repo, branch=branch)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in (403, 404, 405, 501):
                raise

    def _forget(self) -> None:
        self.__dict__.pop("_refs", None)

    @contextmanager
    def _asked(self, branch: str = MAIN) -> Iterator[None]:
        """A block of requests, whose errors say what to do."""
        try:
            yield
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise PublishError(f"{self.repo} has no {branch}, or it is not yours: {_first_line(error)}") from error
        except HfHubHTTPError as error:
            self._forget()
            status = error.response.status_code if error.response is not None else None
            if status in (409, 412):
                raise PublishError(
                    f"{branch} of {self.repo} was changed by somebody else in the meantime; nothing is overwritten. "
                    "Repeat the command: it says what is there now"
                ) from error
            if status in (400, 401, 403):
                repair = (
                    "" if status == 400 else f"; `hf auth login` or HF_TOKEN: a token that may write to {self.repo}"
                )
                raise PublishError(
                    f"the hub refuses this for {self.repo} ({status}): {_first_line(error)}{repair}"
                ) from error
            raise UnreachableError(
                f"the hub failed ({status}): {_first_line(error)}; repeat the command to go on"
            ) from error
        except HFValidationError as error:
            raise PublishError(f"{self.repo!r} is no repository: {_first_line(error)}") from error
        except OfflineModeIsEnabled as error:
            raise PublishError("HF_HUB_OFFLINE is set: unset it to publish") from error
        except BROKEN as error:
            self._forget()
            raise UnreachableError(
                f"the hub cannot be reached, or the connection broke ({_first_line(error)}): repeat the command"
            ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
