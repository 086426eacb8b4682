"""`hf-wsd decay RUN --now`: ask the job that trains in a folder for its decay, and wait for what it says."""

from __future__ import annotations

import time
from pathlib import Path

from hf_wsd.decision import REQUEST, Request, read_answer, write_request
from hf_wsd.errors import ForkError, RunError

_LOOK_EVERY = 0.2  # seconds


def ask_now(run: Path, request: Request, *, wait: float) -> str:
    """What the running job says to a wish that it accepts; it has until the end of its update.

    Args:
        run: the folder of the run.
        request: the wish.
        wait: seconds for an answer; after that, or Ctrl-C, the wish is withdrawn.

    Raises:
        RunError: there is no such folder, or nobody answers. ForkError: the job refuses, and why.
    """
    if not run.is_dir():
        raise RunError(f"no run at {run}: give the --output_dir of the job")
    write_request(run, request)
    end = time.monotonic() + wait
    try:
        while (said := read_answer(run, request.id)) is None:
            if time.monotonic() > end:
                raise RunError(
                    f"no job in {run} has answered within {wait:g} seconds, so the wish is withdrawn. If one trains "
                    f"there whose updates take longer: --wait {10 * wait:g}. If none does: hf-wsd decay {run} --at STEP"
                )
            time.sleep(_LOOK_EVERY)
    finally:
        (run / REQUEST).unlink(missing_ok=True)
    text, accepted = said
    if not accepted:
        raise ForkError(text)
    return text
