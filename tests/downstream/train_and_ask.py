"""train_tiny_lm.py, to which something happens while it trains: DO=WHAT@STEP[,...] says what.

WHAT: file (a wish as `hf-wsd decay --now` writes it, with the fields in WISH), ask (the callback's method), usr1, term,
kill (signals to this very process), abort (once python is torn down, as gloo's threads now and then do). WHAT:RANK
happens in the process of that rank alone.
"""

import ctypes
import os
import signal
from pathlib import Path

import train_tiny_lm
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_wsd.decision import Request, write_request

SIGNALS = {"usr1": signal.SIGUSR1, "term": signal.SIGTERM, "kill": signal.SIGKILL}


class Events(TrainerCallback):
    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        for event in filter(None, os.environ.get("DO", "").split(",")):
            what, _, step = event.partition("@")
            what, _, rank = what.partition(":")
            if int(step) == state.global_step + 1 and int(rank or args.process_index) == args.process_index:
                self.happen(what, args, lr_scheduler.keeper)

    def happen(self, what, args, ours):
        wish = dict(pair.split("=") for pair in os.environ.get("WISH", "").split())
        if what == "file":
            write_request(Path(args.output_dir), Request(by="hf-wsd decay", id="1", **wish))
        elif what == "ask":
            ours.decay_now(**wish)
        elif what == "abort":
            ctypes.CDLL(None)["__cxa_atexit"](ctypes.CDLL(None).abort, None, None)
        else:
            os.kill(os.getpid(), SIGNALS[what])


if __name__ == "__main__":
    DEFAULT_CALLBACKS.append(Events)
    try:
        train_tiny_lm.main()
    finally:
        DEFAULT_CALLBACKS.remove(Events)
