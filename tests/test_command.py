"""How a run was started, kept without secrets: hf_wsd/command.py."""

import json
import sys
import time

import pytest
import yaml

from hf_wsd.command import capture_command, is_secret, scrub_arguments

SECRETS = ["token", "hub_token", "hf_token", "push_to_hub_token", "wandb_api_key", "api_key", "aws_secret_access_key"]
SECRETS += ["password", "db_password", "client_secret", "private_key", "auth_token", "access_token"]
SECRETS += ["hf_api_token", "hugging_face_hub_token", "neptune_api_token", "github_access_token", "gitlab_token"]
SECRETS += ["use_auth_token", "api_keys"]
HARMLESS = ["eos_token", "pad_token", "tokens_per_step", "num_tokens", "token_id", "tokenizer_name", "hub_model_id"]
HARMLESS += ["keep_every", "monkey", "learning_rate", "per_device_train_batch_size", "secretary", "output_dir"]
HARMLESS += ["max_tokens", "token_limit", "bos_token", "max_new_tokens", "tokens", "target_modules", "new_token"]
HUB_TOKEN = "hf_" + "SECRETaB1cD" * 3


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


@pytest.mark.parametrize("where", [HUB_TOKEN, f"--note={HUB_TOKEN}", f'{{"a": "{HUB_TOKEN}"}}', f"run_{HUB_TOKEN}_1"])
def test_value_that_looks_like_a_hub_token_is_blanked(where):
    assert "SECRET" not in scrub_arguments([where])[0]


@pytest.mark.parametrize(
    "name", ["hf_transformersbaseline", "hf_" + "a1" * 20, "hf_" + "aB" * 20, "shelf_" + "aB1" * 12]
)
def test_name_that_only_begins_like_a_hub_token_is_kept(name):
    assert scrub_arguments([name]) == (name,)


def test_command_is_what_followed_the_interpreter(started, tmp_path):
    command = started("-m", "hf_wsd", "--trunk", "run.py", "--lr", "1")
    assert (command.argv, command.cwd) == (("-m", "hf_wsd", "--trunk", "run.py", "--lr", "1"), str(tmp_path))


def test_torchruns_own_switch_is_left_to_torchrun(started):
    assert started("-u", "run.py").argv == ("run.py",)


def test_launchers_variables_are_kept_and_no_others(started):
    variables = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "FSDP_VERSION": "2",
        "WANDB_PROJECT": "small models",
        "WANDB_RUN_ID": "x",
        "HF_WSD_TRUNK": "1",
        "HF_TOKEN": "x",
        "MY": "y",
    }
    kept = started("run.py", **variables).environment
    assert {name for name in variables if name in kept} == {
        "ACCELERATE_MIXED_PRECISION",
        "FSDP_VERSION",
        "WANDB_PROJECT",
    }


@pytest.mark.parametrize(
    ("told", "nodes"),
    [({"GROUP_WORLD_SIZE": "3"}, 3), ({"CROSS_SIZE": "2"}, 2), ({"GROUP_WORLD_SIZE": "1"}, 1), ({}, 1)],
)
def test_number_of_machines_is_what_torchrun_or_deepspeed_told(started, told, nodes):
    assert started("run.py", **told).nodes == nodes


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
        ("a.json", f'{{"note": "{HUB_TOKEN}"}}'),
        ("a.yaml", f"note: {HUB_TOKEN}\n"),
        ("a.yaml", "lr: 1\nhub_token: SECRET\n"),
        ("a.yaml", "hub:\n  token: SECRET\n"),
        ("a.yml", "- api_key: SECRET\n"),
    ],
)
def test_secret_in_an_argument_file_is_left_out(started, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert "SECRET" not in started("run.py", name).files[name]


SECRETS_OF_YAML = [
    "hub_token:\n  SECRET",
    "hub_token:\n\n  SECRET\n  SECRET",
    "api_key: >-\n  SECRET",
    "api_key: |\n  some\n\n  SECRET: x",
    "api_key: !!str SECRET",
    "api_key: !!str |\n  SECRET",
    "api_key: !!str\n  SECRET",
    "api_key: [a, SECRET]",
    "api_keys: ['a]', {b: SECRET}]",
    "api_keys:\n- a\n# of the team\n- SECRET",
    "api_keys:\n  - a\n  - SECRET",
    "api_key:\n  web: SECRET\n  mail: [SECRET]",
    "password: my SECRET phrase",
    "password: my\n  SECRET phrase",
    "password: p#SECRET",
    "password: p:SECRET",
    "password: 'it''s SECRET'",
    'password: "a\\"SECRET"',
    'password: "SECRET"  # do not show',
    '"hub_token": "SECRET"',
    "'hub_token' : SECRET",
    "hub-token: SECRET",
    "hub.token: SECRET",
    "# hub_token: SECRET\nhub_token:",
    "hub:\n  name: me\n  token: SECRET\n  url: x",
    "runs:\n- api_key: SECRET\n  seed: 1\n- - api_key: SECRET\n    seed: 2",
]


@pytest.mark.parametrize("text", SECRETS_OF_YAML)
def test_yaml_without_its_secret_is_yaml_with_all_the_rest(started, tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"lr: 0.1\n{text}\nbetas: [0.9, 0.95]\n")
    copy = started("run.py", "a.yaml").files["a.yaml"]
    assert "SECRET" not in copy
    assert yaml.safe_load(copy) == without_secrets(yaml.safe_load((tmp_path / "a.yaml").read_text()))


def without_secrets(value):
    if isinstance(value, dict):
        return {key: None if is_secret(key) else without_secrets(item) for key, item in value.items()}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "text",
    [
        "{hub_token: SECRET}",
        '{"hub_token"\n: SECRET}',
        "hub: {token: SECRET, name: me}",
        "hub: {\n  token: SECRET,\n  name: me}",
        '{\n"hub_token": "SECRET",\n"lr": 1}',
        "hub_token: [a,\nSECRET]",
        'password: "my\nSECRET phrase"',
        "password: 'my\nSECRET phrase'",
        "? hub_token\n: SECRET",
        "!!str hub_token: SECRET",
        "mine: &a SECRET\nhub_token: *a",
        "hub_token: &a SECRET\nmine: *a",
        "lr: 1  # hub_token: SECRET",
        "command: run.py --hub_token SECRET",
        "arguments:\n- --hub_token\n- SECRET",
        "note: |\n  text\n# no text\nhub_token: SECRET",
    ],
)
def test_yaml_that_may_keep_its_secret_is_not_copied(started, tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"{text}\n")
    assert started("run.py", "a.yaml").files == {}


@pytest.mark.parametrize("text", ["run.py --hub_token SECRET", '{"token": "SECRET"}', "token=SECRET"])
def test_json_whose_texts_name_a_secret_is_not_copied(started, tmp_path, text):
    (tmp_path / "a.json").write_text(json.dumps({"command": text}))
    assert started("run.py", "a.json").files == {}


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {b: 1}\nc: *x\n",
        "note: |\n  # a heading\n\n  text\n",
        "# tokens\npacking: token\neos_token: </s>\nnum_tokens: 5\n",
        '{"lr": 1,\n"seed": 2}\n',
        "run_name: hf_transformersbaseline\n",
    ],
)
def test_yaml_without_secrets_is_copied_as_it_is(started, tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert started("run.py", "a.yaml").files["a.yaml"] == text


def test_long_text_in_an_argument_file_is_read_in_no_time(started, tmp_path):
    (tmp_path / "a.yaml").write_text("key: " + "x" * 60_000)
    begin = time.perf_counter()
    started("run.py", "a.yaml")
    assert time.perf_counter() - begin < 1


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
