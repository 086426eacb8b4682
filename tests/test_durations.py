"""Times as people and Slurm write them: hf_wsd/durations.py."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.durations import read_duration, read_instant, show_duration, slurm_end
from hf_wsd.errors import SettingsError

DAY, HOUR, MINUTE = 86400, 3600, 60
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def in_new_york(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("23h", 23 * HOUR),
        ("90m", 90 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("1h 30m", 90 * MINUTE),
        ("2d", 2 * DAY),
        ("45s", 45),
        ("1.5h", 90 * MINUTE),
        ("2D12H", 60 * HOUR),
        (" 23h ", 23 * HOUR),
        ("04:00:00", 4 * HOUR),
        ("100:30:05", 100 * HOUR + 30 * MINUTE + 5),
        ("1-12:00:00", 36 * HOUR),
        ("1-12:30", 36 * HOUR + 30 * MINUTE),
        ("7-0", 7 * DAY),
    ],
)
def test_duration_is_read(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "23", "30:00", "0h", "-2h", "23x", "1m2h", "4:60:00", "1-24:00:00", "1-30", "h", "inf", "2 3h", "２h"]
)
def test_text_that_is_no_duration_is_refused(text):
    with pytest.raises(SettingsError, match="is no duration above 0: write 23h, 90m"):
        read_duration(text)


@given(st.floats(0.1, 10**8))
def test_shown_duration_is_read_back_to_one_part_in_twenty(seconds):
    assert read_duration(show_duration(seconds)) == pytest.approx(seconds, rel=0.05, abs=0.05)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-12-01T08:00Z", "2026-12-01T08:00:00+00:00"),
        ("2026-12-01T08:00+0530", "2026-12-01T02:30:00+00:00"),
        ("2026-12-01T08:00", "2026-12-01T13:00:00+00:00"),
        ("2026-07-01 08:00:30", "2026-07-01T12:00:30+00:00"),
    ],
)
def test_instant_is_local_time_unless_it_has_an_offset(text, instant, in_new_york):
    assert read_instant(text) == datetime.fromisoformat(instant).timestamp()


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "08:00", "2026-12-01", "2026-02-30T08:00", "1796112000", "2026-12-01T8"]
)
def test_text_that_is_no_instant_is_refused(text):
    with pytest.raises(SettingsError, match="is no date with a time: write 2026-12-01T08:00"):
        read_instant(text)


@pytest.mark.parametrize(
    ("text", "clock"), [("2026-11-23T11:30Z", "2026-11-23T12:00+00:00"), ("2026-11-23T06:30", "2026-11-23T07:00-05:00")]
)
def test_instant_that_is_past_is_refused_with_the_time_now(text, clock, in_new_york):
    with pytest.raises(SettingsError) as error:
        read_instant(text, now=NOON, name="finish_by")
    assert str(error.value) == f"finish_by {text} is past: it is {clock} now (30m later). Give a later one"


def test_instant_to_come_is_no_error():
    assert read_instant("2026-11-23T12:01Z", now=NOON) == NOON + 60


@pytest.mark.parametrize("text", ["", "Unknown", "0", "-1", "1e9", "4294967294", "4294967295", "9" * 40, "１７９６"])
def test_slurm_end_that_is_none_is_none(text):
    assert slurm_end({"SLURM_JOB_END_TIME": text}) is None
