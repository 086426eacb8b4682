"""How a run was started, kept without secrets: hf_wsd/command.py."""

import json
import sys

import pytest

from hf_wsd.command import capture_command, is_secret, scrub_arguments

SECRETS = ["token", "hub_token", "hf_token", "push_to_hub_token", "wandb_api_key", "api_key", "aws_secret_access_key"]
SECRETS += ["password", "db_password", "client_secret", "private_key", "auth_token", "access_token"]
HARMLESS = ["eos_token", "pad_token", "tokens_per_step", "num_tokens", "token_id", "tokenizer_name", "hub_model_id"]
HARMLESS += ["keep_every", "monkey", "learning_rate", "per_device_train_batch_size", "secretary", "output_dir"]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Capture the command of a process that was started with these arguments in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def capture(*argv, **environment):
        monkeypatch.setattr(sys, "orig_argv", ["python", *argv])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return capture_command()

    return capture


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("prefix", ["", "--"])
def test_name_of_a_secret_is_known(name, prefix):
    assert is_secret(prefix + name)


@pytest.mark.parametrize("name", SECRETS)
def test_variable_that_holds_a_secret_is_known(name):
    assert is_secret(name.upper())


@pytest.mark.parametrize("name", SECRETS)
def test_secret_written_with_dashes_is_known(name):
    assert is_secret("--" + name.replace("_", "-"))


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_name_is_no_secret(name):
    assert not is_secret(f"--{name}")


@pytest.mark.parametrize("argv", [["--hub_token", "abc"], ["--hub_token=abc"], ["--hub-token", "abc"], ["--hub_token"]])
def test_secret_is_left_out_of_the_arguments(argv):
    assert scrub_arguments(["run.py", *argv, "--lr", "1"]) == ("run.py", "--lr", "1")


@pytest.mark.parametrize("argv", [["--eos_token", "</s>"], ["--lr=1"], ["-m", "module", "--flag"], ["--a", "-1"], []])
def test_arguments_without_secrets_are_kept_as_they_are(argv):
    assert scrub_arguments(argv) == tuple(argv)


@pytest.mark.parametrize("where", ["hf_abcdefghijklmnop", "--note=hf_abcdefghijklmnop", '{"a": "hf_abcdefghijklmnop"}'])
def test_value_that_looks_like_a_hub_token_is_blanked(where):
    assert "hf_abc" not in scrub_arguments([where])[0]


def test_command_is_what_followed_the_interpreter(started, tmp_path):
    command = started("-m", "hf_wsd", "--trunk", "run.py", "--lr", "1")
    assert (command.argv, command.cwd) == (("-m", "hf_wsd", "--trunk", "run.py", "--lr", "1"), str(tmp_path))


def test_torchruns_own_switch_is_left_to_torchrun(started):
    assert started("-u", "run.py").argv == ("run.py",)


def test_launchers_variables_are_kept_and_no_others(started):
    variables = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "FSDP_VERSION": "2",
        "HF_WSD_TRUNK": "1",
        "HF_TOKEN": "x",
        "MY": "y",
    }
    kept = started("run.py", **variables).environment
    assert {name for name in variables if name in kept} == {"ACCELERATE_MIXED_PRECISION", "FSDP_VERSION"}


def test_launchers_secret_is_left_out(started):
    assert "ACCELERATE_API_KEY" not in started("run.py", ACCELERATE_API_KEY="abc").environment


def test_argument_file_is_copied(started, tmp_path):
    (tmp_path / "args.yaml").write_text("learning_rate: 0.1\n")
    assert started("run.py", "args.yaml").files == {"args.yaml": "learning_rate: 0.1\n"}


def test_json_argument_file_means_the_same_after_the_copy(started, tmp_path):
    (tmp_path / "args.json").write_text('{"learning_rate": 0.1, "betas": [0.9, 0.95]}')
    assert json.loads(started("run.py", "args.json").files["args.json"]) == {"learning_rate": 0.1, "betas": [0.9, 0.95]}


def test_argument_file_given_with_an_equals_sign_is_copied(started, tmp_path):
    (tmp_path / "args.yaml").write_text("learning_rate: 0.1\n")
    assert list(started("run.py", "--config=args.yaml").files.values()) == ["learning_rate: 0.1\n"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"lr": 1, "hub_token": "SECRET"}'),
        ("a.json", '{"hub": {"token": "SECRET"}, "runs": [{"api_key": "SECRET"}]}'),
        ("a.json", '{"note": "hf_SECRETabcdefghijkl"}'),
        ("a.yaml", "lr: 1\nhub_token: SECRET\n"),
        ("a.yaml", "hub:\n  token: SECRET\n"),
        ("a.yml", "- api_key: SECRET\n"),
        ("a.yaml", "{hub_token: SECRET}\n"),
    ],
)
def test_secret_in_an_argument_file_is_left_out(started, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert "SECRET" not in started("run.py", name).files[name]


def test_argument_file_that_is_not_there_is_no_file(started):
    assert started("run.py", "missing.json").files == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.json", b'{"text": "a"}\n{"text": "b"}\n'), ("half.json", b'{"text": '), ("latin.yaml", b"name: \xe9\n")],
    ids=["JSON lines", "half a file", "no UTF-8"],
)
def test_file_that_is_no_argument_file_does_not_stop_the_run(started, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert started("run.py", "--train_file", name).argv == ("run.py", "--train_file", name)


def test_training_data_are_not_copied_into_every_record(started, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([{"text": "word " * 1000}] * 1000))
    assert len(str(started("run.py", "--train_file", "train.json").files)) < 100_000
