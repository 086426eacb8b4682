"""The signals that a training process is sent: SIGTERM ends the job, SIGUSR1 asks for the decay."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

END, DECAY = signal.SIGTERM, getattr(signal, "SIGUSR1", 0)  # Windows has none
_BOTH = [number for number in (END, DECAY) if number]


class Signals:
    """Notes what has been received, for the end of the update; the script's own handlers are called too.

    Handlers can be set in the main thread alone: in any other, nothing is noticed. A second SIGTERM ends the process at
    once.

    >>> signals = Signals(); signals.listen(); os.kill(os.getpid(), signal.SIGUSR1)
    >>> signals.received(DECAY), signals.received(DECAY), signals.received(END)
    (True, False, False)
    >>> signals.restore()
    """

    def __init__(self) -> None:
        self._received: set[int] = set()
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def listen(self) -> None:
        """From now on signals are noted."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _BOTH}

    def received(self, number: int) -> bool:
        """Whether that signal came since the last question."""
        came = number in self._received
        self._received.discard(number)
        return came

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker: it is the parent's to decide
            return
        if number == END and number in self._received:
            self.restore()
            os.kill(self._process, number)
        self._received.add(number)
        if callable(before := self._before.get(number)):
            before(number, frame)


def spare_workers(loader: Any) -> None:
    """Have a DataLoader's workers heed only their own process: a signal to the whole group would take the data away.

    macOS cannot tell who has sent a signal: there they die of it, as everywhere without this.
    """
    loaders: list[Any] = [loader, getattr(loader, "base_dataloader", None)]
    for one in loaders:
        if getattr(one, "num_workers", 0) and hasattr(signal, "sigwaitinfo"):
            one.worker_init_fn = partial(_heed_parent_alone, one.worker_init_fn)


def _heed_parent_alone(then: Callable[[int], None] | None, worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _BOTH)
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    if then is not None:
        then(worker)


def _wait_for_parent() -> None:
    """End this worker when its parent says so: ignored altogether, a parent at its own end would wait forever."""
    while signal.sigwaitinfo(_BOTH).si_pid != os.getppid():
        continue
    os._exit(0)
