"""What every test starts from: no network, no settings left over from the shell or another test."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side: two threads each would wait for one another

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)  # a busy machine is no failure
settings.load_profile("house")


def _take_settings_away() -> dict[str, str]:
    return {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HF_WSD_")}


@pytest.fixture(autouse=True)
def no_settings_in_the_environment():
    """No HF_WSD_* variable during the test, and those of before after it."""
    before = _take_settings_away()
    yield
    _take_settings_away()
    os.environ.update(before)
