"""The stand-in for the hub, as huggingface_hub meets it: `client` runs in a process of its own, once per mode."""

import http.client
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hub_server import HubServer

pytestmark = pytest.mark.slow

REPO = "tester/family"
WEIGHTS = bytes(range(256)) * 100
SOMEBODY = "somebody.txt"


# --- through huggingface_hub ---


def client() -> dict:
    """Publish one revision, then try what the hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_session, hf_hub_download, hf_hub_url

    def add(path, content=b"{}"):
        return CommitOperationAdd(path, content)

    def commit(*operations, parent=None):
        return api.create_commit(
            REPO, operations, commit_message="a", revision="publishing-a", parent_commit=parent
        ).oid

    def half_sent():
        file = Path(tempfile.mkdtemp()) / "other.bin"
        file.write_bytes(WEIGHTS[::-1])
        operation = add("other.bin", str(file))
        assert operation.upload_info.sha256
        file.write_bytes(WEIGHTS)  # it changes after it was hashed
        return operation

    def unsent():
        operation = add("other.bin", WEIGHTS[::-1])
        operation._is_uploaded, operation._upload_mode = True, "lfs"  # or create_commit would send it
        return operation

    api = HfApi()
    api.create_repo(REPO, private=True)
    start = api.model_info(REPO).sha
    api.create_branch(REPO, branch="publishing-a", revision=start)
    done = commit(add("model.safetensors", WEIGHTS), add("wsd/curve.json"), parent=start)
    api.create_branch(REPO, branch="decay-a", revision=done)
    api.create_tag(REPO, tag="decay-a-v1", revision=done)
    part = {**api._build_hf_headers(), "Range": "bytes=100-119"}
    large = api.get_paths_info(REPO, "model.safetensors", revision="decay-a")[0].lfs
    return {
        "start": start,
        "done": done,
        "repeated create_repo": api.create_repo(REPO, exist_ok=True).repo_id,
        "tags": {tag.name: tag.target_commit for tag in api.list_repo_refs(REPO).tags},
        "tree": [entry.path for entry in api.list_repo_tree(REPO, recursive=True, revision="decay-a")],
        "titles": [commit.title for commit in api.list_repo_commits(REPO, revision="decay-a")],
        "large": large and large.size,
        "downloaded": Path(hf_hub_download(REPO, "model.safetensors", revision="decay-a")).read_bytes() == WEIGHTS,
        "range": list(get_session().get(hf_hub_url(REPO, "model.safetensors", revision=done), headers=part).content),
        "unchanged": commit(add("wsd/curve.json")),
        "existing tag": refusal(lambda: api.create_tag(REPO, tag="decay-a-v1")),
        "existing branch": refusal(lambda: api.create_branch(REPO, branch="decay-a")),
        "stale parent": refusal(lambda: commit(add("new.json"), parent=start)),
        "half sent": refusal(lambda: api.preupload_lfs_files(REPO, [half_sent()])),
        "unsent": refusal(lambda: commit(unsent())),
        "no revision": refusal(lambda: api.model_info(REPO, revision="decay-b")),
        "no file": refusal(lambda: hf_hub_download(REPO, "none.json")),
        "no token": refusal(lambda: HfApi(token=False).model_info(REPO)),
        "bad card": refusal(lambda: commit(add("README.md", b"---\ntags: [\n---\n"))),
    }


def refusal(call) -> list | None:
    """The exception's name and the server's status; None if nothing was refused."""
    try:
        call()
    except Exception as error:
        told = error
        while told is not None and not hasattr(told, "response"):
            told = told.__cause__
        return [type(told or error).__name__, told.response.status_code if told else None]
    return None


@pytest.fixture(scope="module", params=["regular", "lfs"])
def met(request, tmp_path_factory):
    """The hub after `client`, and what the client met."""
    with HubServer(tmp_path_factory.mktemp("hub"), request.param) as hub:
        run = subprocess.run([sys.executable, __file__], env=hub.environment(), capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        yield hub, json.loads(run.stdout)


def test_revision_is_kept_as_a_git_branch_and_tag(met):
    hub, seen = met
    assert hub.refs(REPO) == dict.fromkeys(("publishing-a", "decay-a", "decay-a-v1"), seen["done"]) | {
        "main": seen["start"]
    }


def test_branch_holds_what_was_committed(met):
    hub, _ = met
    files = hub.files(REPO, "decay-a")
    assert files.pop(".gitattributes")
    assert files == {"model.safetensors": WEIGHTS, "wsd/curve.json": b"{}"}


def test_client_reads_back_what_it_published(met):
    _, seen = met
    files = [".gitattributes", "model.safetensors", "wsd", "wsd/curve.json"]
    expected = {
        "tags": {"decay-a-v1": seen["done"]},
        "tree": files,
        "titles": ["a", "initial commit"],
        "downloaded": True,
    }
    assert {key: seen[key] for key in expected} == expected


def test_download_goes_on_in_the_middle(met):
    _, seen = met
    assert bytes(seen["range"]) == WEIGHTS[100:120]


def test_only_lfs_mode_keeps_large_files_beside_git(met):
    hub, seen = met
    stored = [file.stat().st_size for file in hub.storage.large(REPO, "").iterdir()]
    assert (seen["large"], stored) == ((len(WEIGHTS), [len(WEIGHTS)]) if hub.mode == "lfs" else (None, []))


def test_repeated_steps_change_nothing(met):
    _, seen = met
    assert (seen["repeated create_repo"], seen["unchanged"]) == (REPO, seen["done"])


@pytest.mark.parametrize(
    ("asked", "exception", "status"),
    [
        ("existing tag", "HfHubHTTPError", 409),
        ("existing branch", "HfHubHTTPError", 409),
        ("stale parent", "HfHubHTTPError", 412),
        ("unsent", "BadRequestError", 400),
        ("no revision", "RevisionNotFoundError", 404),
        ("no file", "RemoteEntryNotFoundError", 404),
        ("no token", "RepositoryNotFoundError", 401),
    ],
)
def test_hub_refuses(met, asked, exception, status):
    assert met[1][asked] == [exception, status]


def test_changed_large_file_is_refused(met):
    hub, seen = met
    assert seen["half sent"] == (["HfHubHTTPError", 422] if hub.mode == "lfs" else None)


def test_card_whose_metadata_is_no_yaml_is_refused(met):
    assert met[1]["bad card"] == ["BadRequestError", 400]


# --- faults, one plain request at a time ---


@pytest.fixture
def hub(tmp_path):
    with HubServer(tmp_path) as hub:
        hub.storage.create(REPO, private=False)
        yield hub


def post(hub: HubServer, place: str, body: bytes = b"{}") -> int:
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
    connection.request("POST", f"/api/models/{REPO}/{place}", body, {"Authorization": f"Bearer {hub.token}"})
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_dropped_request_does_nothing(hub):
    hub.fault(1, "drop")
    with pytest.raises(ConnectionError):
        post(hub, "branch/a")
    assert set(hub.refs(REPO)) == {"main"}


def test_request_whose_answer_is_lost_is_done(hub):
    hub.fault(1, "drop-after")
    with pytest.raises(ConnectionError):
        post(hub, "branch/a")
    assert set(hub.refs(REPO)) == {"main", "a"}


def test_fault_meets_the_nth_request_alone(hub):
    hub.fault(2, "500")
    assert [post(hub, f"branch/{name}") for name in "abc"] == [200, 500, 200]


def test_lasting_fault_ends_with_heal(hub):
    hub.fault(2, "500", lasting=True)
    broken = [post(hub, f"branch/{name}") for name in "abc"]
    hub.heal()
    assert [*broken, post(hub, "branch/d")] == [200, 500, 500, 200]


def test_stale_fault_meets_commits_alone(hub):
    hub.fault(1, "stale", lasting=True)
    header = json.dumps({"key": "header", "value": {"summary": "a"}}).encode()
    assert [post(hub, "branch/a"), post(hub, "commit/main", header)] == [200, 412]


def test_on_request_looks_before_anything_is_done(hub):
    looks = []
    hub.on_request = lambda: looks.append((hub.requests[-1][1].rpartition("/")[2], set(hub.refs(REPO))))
    assert post(hub, "branch/a") == post(hub, "branch/b") == 200
    assert looks == [("a", {"main"}), ("b", {"main", "a"})]


def test_failure_in_on_request_fails_the_test(tmp_path):
    def look():
        raise AssertionError("half a revision")

    def looked_at():
        with HubServer(tmp_path) as hub:
            hub.on_request = look
            post(hub, "branch/a")

    with pytest.raises(AssertionError, match="half a revision"):
        looked_at()


def test_second_users_commit_moves_the_branch(hub):
    before = hub.refs(REPO)["main"]
    assert hub.commit(REPO, "main", {SOMEBODY: b"1"}) == hub.refs(REPO)["main"] != before
    assert hub.files(REPO, "main")[SOMEBODY] == b"1"


if __name__ == "__main__":
    print(json.dumps(client()))
