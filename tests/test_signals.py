"""Signals in a training process and its workers: hf_wsd/signals.py, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, sys, time, torch
from hf_wsd.signals import spare_workers
loader = torch.utils.data.DataLoader(list(range(1000)), num_workers=2, persistent_workers=True)
spare_workers(loader)
batches = iter(loader)
next(batches), next(batches)  # one of each worker: both have begun
print(*(worker.pid for worker in batches._workers), flush=True)
sys.stdin.readline()
print(sum(1 for _ in batches), flush=True)
"""


@pytest.fixture
def process():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        yield one
        one.kill()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="macOS cannot tell who has sent a signal")
def test_workers_live_through_a_signal_to_all_and_end_with_their_process(process):
    workers = [int(pid) for pid in process.stdout.readline().split()]
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    print(file=process.stdin, flush=True)
    assert process.stdout.readline() == "998\n"
    assert process.wait(timeout=30) == 0
    assert [pid for pid in workers if os.path.exists(f"/proc/{pid}")] == []


NOTES = """
import os, signal, time
from hf_wsd.signals import END, Signals
signals = Signals()
signals.listen()
os.kill(os.getpid(), signal.SIGTERM)
print(signals.received(END), flush=True)
for _ in range(2):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
print("still here")
"""


def test_second_sigterm_ends_the_process_at_once():
    result = subprocess.run([sys.executable, "-c", NOTES], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("True\n", -signal.SIGTERM)
