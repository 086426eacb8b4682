"""Rows of a run by step, and files that are whole: hf_wsd/history.py."""

import os
import threading

import pytest

from hf_wsd.history import HISTORY, append_history, cut_history, losses_of, read_history, write_atomically

# --- writing ---


def test_reader_never_sees_half_a_file(tmp_path):
    file, texts = tmp_path / "file", ["a" * 200_000, "b" * 100_000]
    write_atomically(file, texts[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        write_atomically(file, texts[i % 2])
    stop.set()
    reader.join()
    assert seen <= set(texts)


def test_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "new \ud800")  # no UTF-8
    assert file.read_text() == "old"


def test_write_leaves_nothing_but_the_file(tmp_path):
    write_atomically(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]


# --- history ---


def rows(*steps):
    return [{"step": step, "loss": step / 10} for step in steps]


@pytest.fixture
def history(tmp_path):
    for row in rows(10, 20, 30):
        append_history(tmp_path, row)
    return tmp_path


def test_history_is_read_in_the_order_written(history):
    assert read_history(history) == rows(10, 20, 30)


def test_run_without_a_history_has_no_rows(tmp_path):
    assert read_history(tmp_path) == []


def test_last_row_torn_by_a_crash_is_left_out(history):
    with (history / HISTORY).open("a") as file:
        file.write('{"step": 40, "lo')
    assert read_history(history) == rows(10, 20, 30)


def test_row_after_a_torn_one_is_kept(history):
    with (history / HISTORY).open("a") as file:
        file.write('{"step": 40, "lo')
    append_history(history, rows(50)[0])
    assert read_history(history) == rows(10, 20, 30, 50)


@pytest.mark.parametrize(("after", "left"), [(0, ()), (19, (10,)), (20, (10, 20)), (99, (10, 20, 30))])
def test_resume_drops_the_rows_that_it_will_log_again(history, after, left):
    cut_history(history, after=after)
    assert read_history(history) == rows(*left)


def test_run_without_a_history_has_none_after_a_cut(tmp_path):
    cut_history(tmp_path, after=0)
    assert not (tmp_path / HISTORY).exists()


@pytest.mark.parametrize("torn", [b'{"step": 40, "lo', b'{"step": 40, "note": "\xe9"}', b"\xff\xfe", b"\0\0\0\0"])
def test_line_with_bytes_that_are_no_text_is_as_good_as_torn(history, torn):
    with (history / HISTORY).open("ab") as file:
        file.write(torn + b"\n")
    append_history(history, rows(50)[0])
    assert read_history(history) == rows(10, 20, 30, 50)


@pytest.mark.parametrize(
    "line",
    ["null", "5", "[]", "{}", '{"step": null}', '{"step": "5"}', '{"step": 5.5}', '{"step": true}', '{"loss": 1}'],
)
def test_line_that_is_no_row_is_left_out(history, line):
    with (history / HISTORY).open("a") as file:
        file.write(line + "\n")
    cut_history(history, after=99)
    assert read_history(history) == rows(10, 20, 30)


# --- losses ---


def test_losses_are_numbers_without_prefix_and_timings():
    metrics = {"eval_loss": 3, "eval_bits_per_byte": 1.5, "eval_runtime": 9.0, "eval_note": "x", "loss": 4.0}
    assert losses_of(metrics) == {"loss": 3.0, "bits_per_byte": 1.5}


def test_timings_of_several_evaluation_sets_are_no_losses():
    metrics = {"eval_web_loss": 3.0, "eval_web_runtime": 9.0, "eval_web_samples_per_second": 5.0}
    assert losses_of(metrics) == {"web_loss": 3.0}
