"""A model hub on loopback for tests: real git repositories (tests/hub_storage.py) and faults on demand.

    with HubServer(tmp_path, mode="lfs") as hub:
        subprocess.run([sys.executable, "script.py"], env=hub.environment())
        print(hub.requests, hub.git("tester/family", "log", "--oneline", "main"))

A client of it is a fresh process: huggingface_hub reads HF_ENDPOINT when it is imported. By hand:

    python tests/hub_server.py --root hub --port 8000 --mode lfs
"""

import argparse
import base64
import contextlib
import json
import os
import re
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml  # the one import from outside the standard library: huggingface_hub itself needs it
from hub_storage import LARGE_SUFFIXES, USER, Entry, RefusalError, Storage

LARGE_BYTES = 10_000
FAULTS = ("drop", "500", "slow", "stale", "drop-after")

PLACES = {
    "{repo}": r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*?)",
    "{revision}": "(?P<revision>[^/]+)",
    "{path}": "(?P<path>.+)",
    "{sha256}": "(?P<sha256>[0-9a-f]{64})",
}
ROUTES = [  # method, address, method of Handler; a HEAD is a GET without its body
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", "/api/repos/create", "create_repo"),
    ("GET", "/api/models/{repo}", "model_info"),
    ("GET", "/api/models/{repo}/revision/{revision}", "model_info"),
    ("GET", "/api/models/{repo}/refs", "list_refs"),
    ("GET", "/api/models/{repo}/commits/{revision}", "list_commits"),
    ("GET", "/api/models/{repo}/tree/{revision}", "list_tree"),
    ("GET", "/api/models/{repo}/tree/{revision}/{path}", "list_tree"),
    ("POST", "/api/models/{repo}/paths-info/{revision}", "paths_info"),
    ("GET", "/{repo}/resolve/{revision}/{path}", "resolve"),
    ("POST", "/api/models/{repo}/branch/{revision}", "create_branch"),
    ("DELETE", "/api/models/{repo}/branch/{revision}", "delete_branch"),
    ("POST", "/api/models/{repo}/tag/{revision}", "create_tag"),
    ("DELETE", "/api/models/{repo}/tag/{revision}", "delete_tag"),
    ("POST", "/api/models/{repo}/preupload/{revision}", "preupload"),
    ("POST", "/{repo}.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/signed/{repo}/{sha256}", "put_large"),
    ("POST", "/api/models/{repo}/commit/{revision}", "commit"),
]
PUBLIC_READS = {"model_info", "list_refs", "list_commits", "list_tree", "paths_info", "resolve"}


def pattern(address: str) -> re.Pattern:
    return re.compile("".join(PLACES.get(part, re.escape(part)) for part in re.split(r"(\{\w+\})", address)))


MATCHERS = [(method, pattern(address), name) for method, address, name in ROUTES]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Answers one request by the method that ROUTES names. HubServer sets `hub`."""

    hub: "HubServer"

    def handle_request(self):
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.storage = self.hub.storage
        self.close_connection = True
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        if len(self.body) < length:
            return  # the client was killed
        fault = self.hub.arrived(self.command, self.url.path)
        if fault == "slow":
            time.sleep(self.hub.slow_seconds)
        if fault == "drop":
            return
        answer = Answer(500, b"{}") if fault == "500" else self.answer(stale=fault == "stale")
        if fault != "drop-after":
            self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def answer(self, stale: bool) -> Answer:
        try:
            name, places = self.route()
            self.check_access(name, places.get("repo"))
            if stale and name == "commit":
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            result = getattr(self, name)(**places)
        except RefusalError as refusal:
            told = str(refusal).splitlines()[0].encode("ascii", "replace").decode()
            headers = {"X-Error-Message": told, "X-Error-Code": refusal.code}
            return Answer(refusal.status, json.dumps(refusal.body).encode(), headers)
        except Exception as error:
            self.hub.errors.append(error)
            return Answer(500, json.dumps({"error": repr(error)}).encode())
        return result if isinstance(result, Answer) else Answer(body=json.dumps(result).encode())

    def route(self) -> tuple[str, dict[str, str]]:
        method = "GET" if self.command == "HEAD" else self.command
        for of_method, matcher, name in MATCHERS:
            if of_method == method and (match := matcher.fullmatch(self.url.path)):
                return name, {place: unquote(value) for place, value in match.groupdict().items()}
        raise RefusalError(404, f"this server does not know {self.command} {self.url.path}")

    def check_access(self, name: str, repo: str | None) -> None:
        if name == "put_large" and self.query.get("signature") == [self.hub.signature]:
            return  # storage takes a signed address instead of the token, as on the hub
        sent = self.headers.get("Authorization")
        known = sent == f"Bearer {self.hub.token}"
        if sent and not known:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        if repo and not self.storage.exists(repo):
            raise RefusalError(404 if known else 401, "Repository not found", "RepoNotFound")
        public = name == "validate_yaml" or (name in PUBLIC_READS and not self.storage.private(repo))
        if not known and not public:
            raise RefusalError(401, "Invalid username or password.", "RepoNotFound" if repo else "")

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        with contextlib.suppress(ConnectionError):  # the client was killed
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    def log_message(self, *_):
        pass

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    # Users and repositories

    def whoami(self):
        token = {"displayName": "test", "role": "write"}
        return {"type": "user", "id": "1", "name": USER, "fullname": USER, "orgs": [], "auth": {"accessToken": token}}

    def validate_yaml(self):
        missing = [] if metadata(self.json()["content"]) else ["empty or missing yaml metadata in repo card"]
        return {"errors": [], "warnings": [{"message": message} for message in missing]}

    def create_repo(self):
        asked = self.json()
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        if asked.get("type", "model") != "model" or not pattern("{repo}").fullmatch(repo):
            raise RefusalError(400, f"this server keeps models named USER/NAME, not {asked}")
        known = {"url": f"{self.hub.endpoint}/{repo}", "name": repo}
        if self.storage.exists(repo):
            raise RefusalError(409, "You already created this model repo", **known)
        self.storage.create(repo, asked.get("visibility") == "private" or asked.get("private") is True)
        return known

    def model_info(self, repo, revision="main"):
        commit = self.storage.commit_of(repo, revision)
        files = [entry for entry in self.storage.entries(repo, commit, recursive=True) if entry.type == "file"]
        cards = [self.storage.content(repo, entry).decode() for entry in files if entry.path == "README.md"]
        data = (metadata(cards[0]) if cards else None) or {}
        known = {"id": repo, "sha": commit, "private": self.storage.private(repo), "cardData": data}
        known |= {"tags": data.get("tags", []), "lastModified": self.storage.log(repo, commit, "-1")[0]["date"]}
        return known | {"model-index": data.get("model-index"), "siblings": [self.sibling(entry) for entry in files]}

    def sibling(self, entry: Entry) -> dict:
        if "blobs" not in self.query:
            return {"rfilename": entry.path}
        large = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size()}
        sizes = {"rfilename": entry.path, "size": entry.size, "blobId": entry.blob}
        return sizes | ({"lfs": large} if entry.sha256 else {})

    # What a revision holds

    def list_refs(self, repo):
        def listed(kind):
            found = self.storage.refs(repo, kind).items()
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in found]

        return {"branches": listed("heads"), "tags": listed("tags"), "converts": [], "pullRequests": []}

    def list_commits(self, repo, revision):
        return self.storage.log(repo, self.storage.commit_of(repo, revision))

    def list_tree(self, repo, revision, path=""):
        commit = self.storage.commit_of(repo, revision)
        below = [f"{path}/"] if path else []
        found = self.storage.entries(repo, commit, *below, recursive=wanted(self.query, "recursive"))
        if path and not found:
            raise RefusalError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return [self.listed(repo, commit, entry, self.query) for entry in found]

    def paths_info(self, repo, revision):
        commit, form = self.storage.commit_of(repo, revision), parse_qs(self.body.decode())
        found = self.storage.entries(repo, commit, *form["paths"])
        return [self.listed(repo, commit, entry, form) for entry in found]

    def listed(self, repo, commit, entry: Entry, options: dict) -> dict:
        row = {"type": entry.type, "oid": entry.blob, "size": entry.size, "path": entry.path}
        if entry.sha256:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size()}
        if wanted(options, "expand"):
            row["lastCommit"] = self.storage.log(repo, commit, "-1", "--", entry.path)[0]
        return row

    def resolve(self, repo, revision, path):
        commit = self.storage.commit_of(repo, revision)
        found = [entry for entry in self.storage.entries(repo, commit, path) if entry.type == "file"]
        if not found:
            return Answer(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        entry, content = found[0], self.storage.content(repo, found[0])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.blob}"', "Content-Type": "application/octet-stream"}
        if entry.sha256:  # the hub redirects to its storage here; the clients accept the bytes themselves as well
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return Answer(200, content, headers)
        first, last = int(asked[1]), min(int(asked[2] or entry.size), entry.size - 1)
        if first > last:
            return Answer(416, b"", headers | {"Content-Range": f"bytes */{entry.size}"})
        return Answer(206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{entry.size}"})

    # Branches and tags

    def create_branch(self, repo, revision):
        commit = self.storage.commit_of(repo, self.json().get("startingPoint", "main"))
        self.storage.create_ref(repo, f"refs/heads/{revision}", commit)
        return {}

    def delete_branch(self, repo, revision):
        if revision == "main":
            raise RefusalError(403, "the default branch cannot be deleted")
        self.storage.delete_ref(repo, f"refs/heads/{revision}")
        return {}

    def create_tag(self, repo, revision):
        self.storage.create_ref(repo, f"refs/tags/{self.json()['tag']}", self.storage.commit_of(repo, revision))
        return {}

    def delete_tag(self, repo, revision):
        self.storage.delete_ref(repo, f"refs/tags/{revision}")
        return {}

    # Uploads

    def preupload(self, repo, revision):
        here = self.storage.entries(repo, self.storage.commit_of(repo, revision), recursive=True)
        known = {entry.path: {"oid": entry.sha256 or entry.blob} for entry in here}

        def mode(file):
            large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] > LARGE_BYTES
            return "lfs" if large and self.hub.mode == "lfs" else "regular"

        def listed(file):
            answer = {"path": file["path"], "uploadMode": mode(file), "shouldIgnore": False}
            return answer | known.get(file["path"], {})

        return {"files": [listed(file) for file in self.json()["files"]]}

    def lfs_batch(self, repo):
        def listed(oid, size):
            href = f"{self.hub.endpoint}/signed/{repo}/{oid}?signature={self.hub.signature}&size={size}"
            actions = {} if self.storage.large(repo, oid).exists() else {"actions": {"upload": {"href": href}}}
            return {"oid": oid, "size": size, **actions}

        return {"transfer": "basic", "objects": [listed(**asked) for asked in self.json()["objects"]]}

    def put_large(self, repo, sha256):
        self.storage.write_large(repo, sha256, int(self.query["size"][0]), self.body)
        return Answer(200)

    def commit(self, repo, revision):
        if "create_pr" in self.query:
            raise RefusalError(501, "this server has no pull requests")
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        changes, asked = {}, header["value"]
        for operation in operations:
            changes |= getattr(self, f"change_{operation['key']}")(repo, revision, **operation["value"])
        message = f"{asked['summary']}\n\n{asked.get('description', '')}".strip()
        oid = self.storage.commit(repo, revision, changes, message, asked.get("parentCommit", ""))
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"}

    def change_file(self, repo, revision, path, content, encoding):
        return {path: self.storage.write(repo, base64.b64decode(content))}

    def change_lfsFile(self, repo, revision, path, oid, **_):  # noqa: N802 - the protocol's word
        return {path: self.storage.write_pointer(repo, oid, path)}

    def change_deletedFile(self, repo, revision, path):  # noqa: N802
        below = self.storage.entries(repo, self.storage.commit_of(repo, revision), path, recursive=True)
        if not below:
            raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
        return {entry.path: None for entry in below if entry.type == "file"}

    change_deletedFolder = change_deletedFile  # noqa: N815


def wanted(options: dict[str, list[str]], name: str) -> bool:
    return options.get(name, [""])[0].lower() in ("true", "1")


def metadata(card: str) -> dict | None:
    """The YAML block of a card, None without one; metadata that the hub would refuse is refused."""
    block = re.match(r"---\r?\n(.*?)\n?---\s*(\r?\n|$)", card, re.S)
    try:
        data = yaml.safe_load(block[1]) if block else None
        results = [
            (model["name"], result) for model in (data or {}).get("model-index", []) for result in model["results"]
        ]
        for _, result in results:
            _ = result["task"]["type"], result["dataset"]["name"], result["dataset"]["type"]
            _ = [(metric["type"], metric["value"]) for metric in result["metrics"]]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        message = f"{type(error).__name__}: {error}"
        raise RefusalError(400, message, errors=[{"message": message}], warnings=[]) from None
    return data


class HubServer:
    """The hub while its `with` block lasts; what it keeps lies in `root`, where the next one finds it.

    Attributes:
        endpoint: its address; `token` is the one that opens it (user `tester`).
        requests: method and path of every request so far.
        on_request: called before each request is handled, one at a time: `requests[-1]` is the one.
        errors: failures of this server or of `on_request`; the first is raised when the block ends.
        slow_seconds: how late a "slow" answer is.
    """

    def __init__(self, root: Path, mode: str = "regular", port: int = 0):
        if mode not in ("regular", "lfs"):
            raise ValueError(f'mode is "regular" or "lfs", not {mode!r}')
        self.storage, self.home, self.mode = Storage(Path(root) / "hub"), Path(root) / "home", mode
        self.token, self.signature = f"hf_{secrets.token_hex(17)}", secrets.token_hex(8)
        self.requests: list[tuple[str, str]] = []
        self.errors: list[Exception] = []
        self.on_request = lambda: None
        self.slow_seconds = 2.0
        self._faults: dict[int, str] = {}
        self._lasting: tuple[int, str] = (sys.maxsize, "")
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind, *_):
        self._http.shutdown()
        self._http.server_close()
        if self.errors and kind is None:
            raise self.errors[0]

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a client process: this server, its token and a cache of its own."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        ours = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "0"}
        ours |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | ours | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | more

    def fault(self, nth: int, what: str, lasting: bool = False) -> None:
        """Spoil the nth request from now on (1 is the next), or that one and all after it.

        "drop": the connection ends before anything is done. "500": nothing is done either. "slow": done late.
        "stale": a commit is answered 412. "drop-after": it is done, but its answer is lost.
        """
        if what not in FAULTS:
            raise ValueError(f"no fault {what!r}: one of {', '.join(FAULTS)}")
        with self._lock:
            number = len(self.requests) + nth
            if lasting:
                self._lasting = (number, what)
            else:
                self._faults[number] = what

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults, self._lasting = {}, (sys.maxsize, "")

    def arrived(self, method: str, path: str) -> str | None:
        """Note a request, let the test look, say which fault it meets."""
        with self._lock:
            self.requests.append((method, path))
            try:
                self.on_request()
            except Exception as error:
                self.errors.append(error)
            number = len(self.requests)
            return self._lasting[1] if number >= self._lasting[0] else self._faults.get(number)

    # Straight into a repository, without HTTP

    def git(self, repo: str, *args: str) -> str:
        return self.storage.git(repo, *args).decode()

    def refs(self, repo: str) -> dict[str, str]:
        """Commits by branch and tag; {} where the repository is not there yet."""
        kinds = ("heads", "tags") if self.storage.exists(repo) else ()
        return {name: commit for kind in kinds for name, commit in self.storage.refs(repo, kind).items()}

    def files(self, repo: str, revision: str) -> dict[str, bytes]:
        """The content of every file of a revision, large ones too."""
        entries = self.storage.entries(repo, self.storage.commit_of(repo, revision), recursive=True)
        return {entry.path: self.storage.content(repo, entry) for entry in entries if entry.type == "file"}

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        """A second user's commit."""
        blobs = {path: self.storage.write(repo, content) for path, content in files.items()}
        return self.storage.commit(repo, branch, blobs, "somebody else's change", author="somebody")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the repositories")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--mode", choices=["regular", "lfs"], default="lfs")
    asked = parser.parse_args()
    with HubServer(asked.root, asked.mode, asked.port) as hub:
        print(
            *(f"export {key}={value}" for key, value in hub.environment().items() if "HF_" in key), sep="\n", flush=True
        )
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
