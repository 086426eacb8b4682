"""What leaves this machine with a published model, and what must not: hf_wsd/scrubbing.py."""

import json
from pathlib import Path

import pytest

from hf_wsd.scrubbing import clean, leaks, without_paths


@pytest.mark.parametrize(
    "path",
    ["/srv/jdoe/my models/tiny", "~/jdoe/tiny", "file:///srv/jdoe/tiny", r"C:\Users\jdoe\tiny", r"\\server\jdoe\tiny"],
)
def test_a_configuration_keeps_the_last_part_of_a_path_alone(path):
    assert without_paths({"of": [{"base": path}]}) == {"of": [{"base": "tiny"}]}


def test_secrets_go_from_flags_keys_and_texts():
    told = {"api_key": "abcdefgh", "eos_token": "</s>", "note": "t.py --hub_token abcdefgh --lr 1"}
    assert clean(told) == {"eos_token": "</s>", "note": "t.py --hub_token *** --lr 1"}


def test_a_folder_that_holds_a_secret_or_a_path_of_this_machine_is_told_by_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh1")
    (tmp_path / "a.json").write_text(json.dumps({"k": "xabcdefgh1x"}))
    (tmp_path / "b.pt").write_bytes(b"\x80" + str(Path.cwd() / "c").encode())
    (tmp_path / "c.json").write_text(f"{Path.cwd()}-other")
    assert list(leaks(tmp_path)) == ["a.json: a token or another secret", f"b.pt: the folder {Path.cwd()}"]
