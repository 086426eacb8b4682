"""The embedded corpus and tokenizer of recipes/corpus."""

import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

CORPUS = Path(__file__).resolve().parents[1] / "recipes" / "corpus"
PROVENANCE = json.loads((CORPUS / "provenance.json").read_text())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return datasets.load_dataset(str(CORPUS), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(CORPUS / "tokenizer"), local_files_only=True)


def test_the_folder_loads_as_two_splits_of_documents(corpus):
    assert {split: rows.num_rows for split, rows in corpus.items()} == {"train": 104, "validation": 10}
    assert corpus["train"].column_names == ["title", "source", "text"]


def test_splits_share_no_title(corpus):
    titles = corpus["train"]["title"][:] + corpus["validation"]["title"][:]
    assert len(titles) == len(set(titles))


def test_validation_is_five_to_eight_percent_of_the_text(corpus):
    sizes = {split: sum(len(text.encode()) for text in rows["text"]) for split, rows in corpus.items()}
    assert sizes == {split: facts["bytes"] for split, facts in PROVENANCE["splits"].items()}
    assert 0.05 < sizes["validation"] / sum(sizes.values()) < 0.08


def test_validation_repeats_less_than_one_percent_of_the_training_text(corpus):
    def runs(text):
        words = re.findall(r"[a-z']+", text.lower())
        return {hash(tuple(words[i : i + 8])) for i in range(len(words) - 7)}

    seen = set().union(*map(runs, corpus["train"]["text"]))
    shared = {row["title"]: len(runs(row["text"]) & seen) / len(runs(row["text"])) for row in corpus["validation"]}
    assert max(shared.values()) < 0.01, shared


def test_no_boilerplate_is_left(corpus):
    for text in [*corpus["train"]["text"], *corpus["validation"]["text"]]:
        found = re.search(
            r"gutenberg|\be-?text|copyright|public domain|transcriber|rights reserved|http|\r|\ufeff",
            text,
            re.I,
        )
        assert not found, found


@pytest.mark.parametrize("name", PROVENANCE["files"])
def test_committed_file_is_the_one_in_provenance(name):
    assert hashlib.sha256((CORPUS / name).read_bytes()).hexdigest() == PROVENANCE["files"][name]


def test_readme_states_the_sizes_in_provenance():
    readme = (CORPUS / "README.md").read_text()
    for split, facts in PROVENANCE["splits"].items():
        numbers = f"| {split} | {facts['documents']} | {facts['bytes']:,} | {facts['tokens']:,} |"
        assert numbers + f" {facts['bytes'] / facts['tokens']:.2f} |" in readme


@pytest.mark.parametrize(
    "text",
    [
        "To be, or not to be: that is the question .",
        "  leading,\n\n trailing \t\r\n ",
        "naïve café, ﬁ, A\u030a, 日本語, עברית, 🤖👩‍👩‍👧‍👦",
        "".join(map(chr, range(256))),
        "\x00\ufeff\ufffd\U0010ffff",
        "",
        "before<|endoftext|>after",
    ],
)
def test_text_decodes_to_itself(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_end_of_text_is_every_special_token(tokenizer):
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"
    assert (len(tokenizer), tokenizer.model_max_length) == (2048, 1024)


def test_tokenizer_adds_nothing(tokenizer):
    assert tokenizer("a")["input_ids"] == tokenizer.convert_tokens_to_ids(["a"])


def test_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "Shall I compare thee — 🌞 — to a summer's day?"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.eos_token_id, again.model_max_length) == (0, 1024)


def test_build_names_its_versions_once():
    header = (CORPUS / "build.py").read_text().partition('# ///\n"""')[0]
    assert dict(re.findall(r'"([a-z]+)==([\d.]+)"', header)) == PROVENANCE["built_with"]


@pytest.mark.slow
def test_rebuilding_gives_the_same_bytes():
    for package, pin in PROVENANCE["built_with"].items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "missing"
        if found != pin:
            pytest.skip(f"{package} is {found}; the corpus was built with {pin}, and the bytes depend on it")
    build = [sys.executable, str(CORPUS / "build.py"), "--check"]
    run = subprocess.run(build, capture_output=True, text=True)
    if re.search(r"No matching distribution|Could not find a version|ConnectionError|MaxRetryError", run.stderr):
        pytest.skip("the source packages cannot be downloaded here")
    assert run.returncode == 0, run.stdout + run.stderr
