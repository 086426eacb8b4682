"""How late a branch's first step comes, 1,000,000 steps deep in map-style data, beside a fresh run's: as JSON.

    python tests/bench/deep.py --repeats 5

Seconds from the start of the process to the end of the first update, of a fresh run and of a branch in turn. This one
process makes all of them: the start-up that it has seen, imports included, is counted into each. They are seconds of
its CPU time on one thread, which other work on the machine disturbs less than seconds on the clock.

The checkpoint is forged: a trunk of two steps, whose state then says step 1,000,000 and has a logged row for every 500.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import hf_wsd

START_UP = time.process_time()
DEPTH, BATCH, TOKENS, DECAY = 1_000_000, 8, 16, 1_000
SAMPLES = {"first epoch": BATCH * (DEPTH + 2 * DECAY), "fourth epoch": BATCH * 3 * DEPTH // 10}


class Synthetic(torch.utils.data.Dataset):
    def __init__(self, samples: int):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitem__(self, i):
        ids = torch.arange(i, i + TOKENS) % 64
        return {"input_ids": ids, "labels": ids}


class FirstStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        self.time = time.process_time()
        control.should_training_stop = True


def run(folder: Path, samples: int, steps: int, decay: int, checkpoint: Path | None = None, **more) -> float:
    """Train; the CPU seconds to the end of the first update if more steps are planned than a forgery needs."""
    begin, clock = time.process_time(), FirstStep()
    set_seed(0)
    args = TrainingArguments(
        output_dir=str(folder),
        lr_scheduler_type="wsd",
        lr_scheduler_kwargs={"num_decay_steps": decay},
        warmup_steps=1,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no"} | more,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=TOKENS, n_embd=32, n_layer=2, n_head=2)),
        args=args,
        train_dataset=Synthetic(samples),
        callbacks=[clock] if steps > DEPTH else [],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    shutil.rmtree(folder / "_fork-points", ignore_errors=True)
    return getattr(clock, "time", begin) - begin


def forge(folder: Path, samples: int) -> Path:
    """A checkpoint that says it is a million steps deep."""
    run(folder, samples, steps=2, decay=0)
    checkpoint = (folder / "checkpoint-2").rename(folder / f"checkpoint-{DEPTH}")
    (checkpoint / "wsd.json").unlink()  # written anew from the scheduler's state
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    row = {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 5e-5, "epoch": 1.0, "phase": 1}
    rows = [row | {"step": step, "tokens": step * BATCH * TOKENS} for step in range(500, DEPTH + 1, 500)]
    state |= {"global_step": DEPTH, "epoch": DEPTH * BATCH / samples, "log_history": rows}
    file.write_text(json.dumps(state, indent=2))
    scheduler = torch.load(checkpoint / "scheduler.pt")
    torch.save(scheduler | {"last_epoch": DEPTH, "_step_count": DEPTH + 1}, checkpoint / "scheduler.pt")
    return checkpoint


def measure(samples: int, repeats: int) -> dict[str, list[float]]:
    """Seconds to the first update of fresh runs and of branches, which take turns; one pair before is not counted."""
    seconds: dict[str, list[float]] = {"fresh": [], "branch": []}
    with tempfile.TemporaryDirectory() as name:
        checkpoint = forge(Path(name) / "trunk", samples)
        for _ in range(1 + repeats):
            for kind, start in (("fresh", None), ("branch", checkpoint)):
                folder = Path(name) / kind
                seconds[kind].append(run(folder, samples, DEPTH + DECAY, DECAY if start else 0, start))
                shutil.rmtree(folder)
    return {kind: values[1:] for kind, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each kind")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    hf_wsd.register()
    print(json.dumps({"start_up": START_UP} | {where: measure(n, repeats) for where, n in SAMPLES.items()}))


if __name__ == "__main__":
    main()
