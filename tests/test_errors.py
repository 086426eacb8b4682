"""The exception tree: hf_wsd/errors.py."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import hf_wsd
from hf_wsd import errors

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


def drawn_tree() -> dict[str, str]:
    """Child to parent, as drawn in the module's docstring: the column of a name is its depth."""
    tree, above = {}, {}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"(    [│├└─ ]*)(\w+Error)( \((\w+)\))?", line):
            column = len(match[1])
            tree[match[2]] = match[4] or next(name for c, name in sorted(above.items(), reverse=True) if c < column)
            above = {c: name for c, name in above.items() if c < column} | {column: match[2]}
    return tree


def test_tree_in_the_docstring_is_the_real_tree():
    assert drawn_tree() == {cls.__name__: cls.__base__.__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_caught_by_wsd_error(cls):
    assert issubclass(cls, errors.WSDError)


def test_no_other_module_defines_an_exception():
    elsewhere = [
        f"{file.name}:{node.lineno} {node.name}"
        for file in Path(hf_wsd.__file__).parent.glob("*.py")
        if file.name != "errors.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("Error" in ast.unparse(b) for b in node.bases)
    ]
    assert elsewhere == []


def test_unknown_name_is_answered_with_the_nearest_one():
    assert "did you mean 'cosine'? Known: linear, cosine." in errors.unknown("shape", "cosin", ["linear", "cosine"])


def test_unknown_name_like_nothing_is_answered_with_the_known_ones():
    assert errors.unknown("shape", "zzz", ["linear", "cosine"]) == "unknown shape 'zzz'. Known: linear, cosine."
