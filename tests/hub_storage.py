"""What tests/hub_server.py keeps: bare git repositories, and large files named and checked by their sha256."""

import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

USER = "tester"
NOWHERE = "0" * 40
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
POINTER_PATTERN = re.compile(POINTER.replace(".", r"\.").format("([0-9a-f]{64})", r"(\d+)").encode())
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)


class RefusalError(Exception):
    """An answer other than success. `code` is the X-Error-Code that huggingface_hub makes its exceptions from."""

    def __init__(self, status: int, message: str, code: str = "", **more):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **more}


class GitError(Exception):
    """A git command failed."""


@dataclass(frozen=True)
class Entry:
    """A file or directory of one commit. A large file has a `sha256`; its `size` is that of its content."""

    path: str
    type: str
    blob: str
    size: int = 0
    sha256: str | None = None

    def pointer_size(self) -> int:
        return len(POINTER.format(self.sha256, self.size))


class Storage:
    """Bare repositories ROOT/USER/NAME.git, each with a folder `large` and, if private, a file `private`."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, repo: str) -> Path:
        return self.root / f"{repo}.git"

    def git(self, repo: str, *args: str, stdin: bytes = b"", **variables: str) -> bytes:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        ours |= {f"GIT_{who}_{what}": USER for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        ours |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"} | variables
        command = ["git", "--git-dir", str(self.folder(repo)), *args]
        done = subprocess.run(command, input=stdin, capture_output=True, env=ours)
        if done.returncode:
            raise GitError(f"git {' '.join(args)}: {done.stderr.decode()}")
        return done.stdout

    def word(self, repo: str, *args: str, **more) -> str:
        return self.git(repo, *args, **more).decode().strip()

    # Repositories and references

    def exists(self, repo: str) -> bool:
        return (self.folder(repo) / "HEAD").is_file()

    def private(self, repo: str) -> bool:
        return (self.folder(repo) / "private").exists()

    def create(self, repo: str, private: bool) -> None:
        """A new repository with the hub's own first commit, which holds .gitattributes."""
        (self.folder(repo) / "large").mkdir(parents=True)
        self.git(repo, "init", "--quiet", "--bare", "--initial-branch=main")
        if private:
            (self.folder(repo) / "private").touch()
        self._commit(repo, "main", None, {".gitattributes": self.write(repo, GITATTRIBUTES.encode())}, "initial commit")

    def refs(self, repo: str, kind: str) -> dict[str, str]:
        """Commits by name; `kind` is "heads" or "tags"."""
        lines = self.word(repo, "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", f"refs/{kind}")
        return dict(line.split() for line in lines.splitlines())

    def commit_of(self, repo: str, revision: str) -> str:
        """The commit that a branch, a tag or the start of an oid names."""
        named = self.refs(repo, "tags") | self.refs(repo, "heads")
        if revision in named:
            return named[revision]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            try:
                return self.word(repo, "rev-parse", "--verify", f"{revision}^{{commit}}")
            except GitError:
                pass
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def create_ref(self, repo: str, ref: str, commit: str) -> None:
        try:
            self.git(repo, "check-ref-format", ref)
        except GitError:
            raise RefusalError(400, f"Invalid reference name: {ref}") from None
        try:
            self.git(repo, "update-ref", ref, commit, NOWHERE)
        except GitError:
            raise RefusalError(409, f"Reference already exists: {ref}") from None

    def delete_ref(self, repo: str, ref: str) -> None:
        try:
            self.git(repo, "show-ref", "--verify", ref)
        except GitError:
            raise RefusalError(404, f"Reference does not exist: {ref}", "RevisionNotFound") from None
        self.git(repo, "update-ref", "-d", ref)

    # Files

    def entries(self, repo: str, commit: str, *paths: str, recursive: bool = False) -> list[Entry]:
        """What a commit holds; a path that ends in a slash stands for what lies below it."""
        how = ["-r", "-t"] if recursive else []
        lines = self.git(repo, "ls-tree", "-l", "-z", *how, commit, "--", *paths).decode().split("\0")
        return [self._entry(repo, line) for line in lines if line and f"{line.partition(chr(9))[2]}/" not in paths]

    def _entry(self, repo: str, line: str) -> Entry:
        described, path = line.split("\t", 1)
        _, kind, blob, size = described.split()
        if kind == "tree":
            return Entry(path, "directory", blob)
        pointer = POINTER_PATTERN.fullmatch(self.git(repo, "cat-file", "blob", blob)) if 120 < int(size) < 150 else None
        return (
            Entry(path, "file", blob, int(pointer[2]), pointer[1].decode())
            if pointer
            else Entry(path, "file", blob, int(size))
        )

    def content(self, repo: str, entry: Entry) -> bytes:
        return (
            self.large(repo, entry.sha256).read_bytes()
            if entry.sha256
            else self.git(repo, "cat-file", "blob", entry.blob)
        )

    def write(self, repo: str, content: bytes) -> str:
        return self.word(repo, "hash-object", "-w", "--stdin", stdin=content)

    def large(self, repo: str, sha256: str) -> Path:
        return self.folder(repo) / "large" / sha256

    def write_large(self, repo: str, sha256: str, size: int, content: bytes) -> None:
        """Keep a large file; the wrong bytes are refused and leave nothing behind."""
        if (hashlib.sha256(content).hexdigest(), len(content)) != (sha256, size):
            raise RefusalError(422, f"the {len(content)} bytes received are not the {size} bytes of sha256 {sha256}")
        with tempfile.NamedTemporaryFile(dir=self.folder(repo), delete=False) as file:
            file.write(content)
        os.replace(file.name, self.large(repo, sha256))

    def write_pointer(self, repo: str, sha256: str, path: str) -> str:
        if not self.large(repo, sha256).exists():
            raise RefusalError(400, f"an LFS pointer pointed to a file that does not exist: {path}, sha256 {sha256}")
        return self.write(repo, POINTER.format(sha256, self.large(repo, sha256).stat().st_size).encode())

    # Commits

    def commit(self, repo, branch: str, changes: dict[str, str | None], message: str, parent="", author=USER) -> str:
        """One commit: the new blob of each changed path, None to delete it. A stale parent is refused."""
        head = self.refs(repo, "heads").get(branch)
        if head is None:
            raise RefusalError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if not head.startswith(parent):
            raise RefusalError(412, f"A commit has happened since: {branch} is at {head}, not at {parent}.")
        return self._commit(repo, branch, head, changes, message, author)

    def _commit(self, repo, branch, head, changes, message, author=USER) -> str:
        lines = [f"100644 {blob}\t{path}\0" if blob else f"0 {NOWHERE}\t{path}\0" for path, blob in changes.items()]
        with tempfile.TemporaryDirectory(dir=self.folder(repo)) as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            self.git(repo, "read-tree", head or "--empty", **index)
            self.git(repo, "update-index", "-z", "--index-info", stdin="".join(lines).encode(), **index)
            tree = self.word(repo, "write-tree", **index)
        parents = ["-p", head] if head else []
        oid = self.word(repo, "commit-tree", tree, *parents, stdin=message.encode(), GIT_AUTHOR_NAME=author)
        try:
            self.git(repo, "update-ref", f"refs/heads/{branch}", oid, head or NOWHERE)
        except GitError:
            raise RefusalError(412, f"A commit has happened since: {branch} is no longer at {head}.") from None
        return oid

    def log(self, repo: str, commit: str, *more: str) -> list[dict]:
        """Commits as the hub tells them, the newest first."""
        listing = self.git(repo, "log", "-z", "--format=%H%n%an%n%ct%n%s%n%b", commit, *more).decode()
        commits = [text.split("\n", 4) for text in listing.split("\0") if text]
        return [
            {"id": oid, "authors": [{"user": author}], "date": date(int(at)), "title": title, "message": body.strip()}
            for oid, author, at, title, body in commits
        ]


def date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
