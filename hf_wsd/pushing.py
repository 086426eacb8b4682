"""`--push_to_hub` of a run with our scheduler: each decayed model goes to its revision when its decay ends.

`hf-wsd publish` does it, in a process of its own: training goes on meanwhile, whatever becomes of the push. The end of
the job waits for it. What failed is tried again by the next push, or by `hf-wsd publish RUN`.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from pathlib import Path

from transformers import TrainingArguments
from transformers.utils import logging

from hf_wsd.casts import cast
from hf_wsd.errors import SettingsError
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)
EVERY_SAVE = "push_every_save"  # the name in `allow` for Trainer's own pushes
LOG = "_publish.log"  # in the run's folder
ATTEMPTS = 6  # with pauses of 2, 4, 8, 16, 32 seconds
_OF_THE_JOB = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "TORCHELASTIC_", "ACCELERATE_", "HF_WSD_", "SLURM_")


class Pusher:
    """Pushes the decayed models of one run.

    Args:
        run: the run's folder.
        repo: USER/NAME of the family's repository.
        token: of --hub_token; None is the one that is logged in.
        private: of a repository that is made.
    """

    def __init__(self, run: Path, repo: str, *, token: str | None = None, private: bool = True) -> None:
        self._run, self._repo, self._token, self._private = run, repo, token, private
        self._running: list[subprocess.Popen[bytes]] = []

    def push(self) -> None:
        """Begin to push what is finished; nothing is raised."""
        script = "from hf_wsd.cli import main; main()"
        argv = [sys.executable, "-c", script, "publish", str(self._run), "--repo", self._repo]
        argv += ["--attempts", str(ATTEMPTS), *([] if self._private else ["--public"])]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_JOB)}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # the model is looked at on a CPU
        environment |= {"HF_TOKEN": self._token} if self._token else {}
        try:
            with (self._run / LOG).open("ab") as log:
                process = subprocess.Popen(
                    argv,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C and SIGTERM are the job's
                )
        except OSError as error:
            return self._failed(str(error))
        if not self._running:
            atexit.register(self._wait)
        self._running.append(process)
        return None

    def _wait(self) -> None:
        """The job ends when its pushes have: what comes after it may take the machine away."""
        for process in self._running:
            if process.poll() is None:
                logger.warning(f"hf_wsd: waiting for the push to {self._repo} ({self._run / LOG})")
            if process.wait():
                self._failed(f"status {process.returncode}, see {self._run / LOG}")

    def _failed(self, why: str) -> None:
        logger.error(
            f"hf_wsd: a push to {self._repo} failed ({why}); the model is in {self._run}, and `hf-wsd publish "
            f"{self._run} --repo {self._repo}` tries again"
        )


def push_strategy(args: TrainingArguments) -> str:
    """The --hub_strategy of a run; ours have to ask for "end"."""
    return str(getattr(args.hub_strategy, "value", args.hub_strategy))


def take_over(args: TrainingArguments, settings: Settings) -> Pusher | None:
    """Have a run's decayed models pushed to their revisions instead of every save to `main`.

    Args:
        args: of the run; with our scheduler `push_to_hub` is off from here on, unless every save is to go to `main`.
        settings: with `push_every_save` in `allow` Trainer's pushes stay on.

    Returns:
        None without --push_to_hub.

    Raises:
        SettingsError: every save would be pushed, or nobody said where the models go.
    """
    if not args.push_to_hub:
        return None
    if not args.hub_model_id:
        raise SettingsError(
            "--push_to_hub needs --hub_model_id USER/NAME with a wsd schedule: all models of a family go to one "
            "repository, a revision each"
        )
    kwargs = args.lr_scheduler_kwargs or {}
    allowed = (*settings.allow, *(cast("allow", kwargs.get("allow")) or ()))
    if EVERY_SAVE not in allowed:
        if (strategy := push_strategy(args)) != "end":
            raise SettingsError(
                f"--push_to_hub with --hub_strategy {strategy} would push every save to main, also the undecayed ones "
                "that are no finished models. --hub_strategy end pushes each decayed model to its own revision when "
                f"its decay ends, and the longest to main; --allow {EVERY_SAVE} pushes every save all the same"
            )
        args.push_to_hub = False  # for Trainer, and for the last lines of a script
        logger.warning(f"hf_wsd: decayed models go to revisions of {args.hub_model_id}, the longest to main too")
    if args.hub_private_repo is None:
        logger.warning("hf_wsd: a repository that Trainer makes is private with --hub_private_repo True alone")
    private = args.hub_private_repo is not False
    return Pusher(Path(args.output_dir), args.hub_model_id, token=args.hub_token, private=private)
