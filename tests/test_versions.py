"""The releases that pyproject promises are those that `make downstream` installs: the oldest, and the newest."""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from trainer_runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OLDEST = dict(
    line.split("==")
    for line in (ROOT / "tests" / "downstream" / "oldest.txt").read_text().splitlines()
    if not line.startswith("#")
)


def test_oldest_releases_are_the_lower_bounds():
    bounds = {Requirement(line).name: str(Requirement(line).specifier) for line in PROJECT["dependencies"]}
    del bounds["torch"]  # the Makefile's TORCH
    assert {name: Version(low) for name, low in OLDEST.items()} == {
        name: Version(bound.removeprefix(">=")) for name, bound in bounds.items()
    }


@pytest.mark.skipif(os.environ.get("DOWNSTREAM") != "oldest", reason="only `make oldest` installs them")
@pytest.mark.parametrize("name", OLDEST)
def test_oldest_release_is_installed(name):
    assert version(name) == OLDEST[name]


@pytest.mark.skipif(os.environ.get("DOWNSTREAM") != "newest", reason="only `make newest` installs them")
@pytest.mark.parametrize("name", [name for name in EXTRAS["downstream"] + EXTRAS["trackers"] if "[" not in name])
def test_package_is_there_so_that_no_test_is_skipped_for_want_of_it(name):
    assert version(name)
