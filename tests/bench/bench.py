"""Speed as ratios measured in one run: `make bench`, or `python tests/bench/bench.py --quick` to see that it works.

Numbers mean something only on a machine that does nothing else. The table is printed and written to --output.

1. Tokens per second of the recipe (its model and data through Trainer with WSDCallback, no evaluation, no saving) over
   those of a bare PyTorch loop: same model, batches, fused AdamW, clipping and precision. Repeats take turns.
2. One scheduler step in microseconds, beside transformers' own LambdaLR.
3. `import hf_wsd` in milliseconds, above the start of a bare interpreter.
4. How late a branch's first step comes, a million steps deep in the data, beside a fresh run's: tests/bench/deep.py.
"""

# ruff: noqa: E402 - the recipes are no package: their folder has to be on the path first
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes")]

import torch
import transformers
from blocks import DataArguments, load_blocks, load_tokenizer
from pretrain import ModelArguments, PretrainingArguments, new_model
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, default_data_collator, get_wsd_schedule, set_seed

import hf_wsd

WARMUP_UPDATES = 10  # not timed: allocations, caches, the first batches
PEAK_LR, CLIP, SEED = 5e-3, 1.0, 42
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = DEVICE == "cuda"


class Clock(TrainerCallback):
    """Seconds from the end of the untimed updates to the end of the last one, before anything is saved."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (WARMUP_UPDATES, args.max_steps):
            synchronize()
            self.begin, self.end = getattr(self, "end", None), time.perf_counter()


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds_of_trainer(make_model, blocks, args: argparse.Namespace) -> float:
    set_seed(SEED)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = PretrainingArguments(
            output_dir=folder,
            max_steps=args.updates,
            per_device_train_batch_size=args.batch,
            learning_rate=PEAK_LR,
            max_grad_norm=CLIP,
            bf16=BF16,
            lr_scheduler_kwargs={"num_decay_steps": 0},
            eval_strategy="no",
            save_strategy="no",
            dataloader_pin_memory=DEVICE == "cuda",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Trainer(
            model=make_model(),
            args=settings,
            train_dataset=blocks,
            data_collator=default_data_collator,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)  # the table alone goes to stdout
        trainer.train()
    return clock.end - clock.begin


def seconds_of_bare_loop(make_model, blocks, args: argparse.Namespace) -> float:
    set_seed(SEED)
    model = make_model().to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loader = DataLoader(blocks, batch_size=args.batch, shuffle=True, drop_last=True, collate_fn=default_data_collator)
    begin, batches = 0.0, iter(loader)
    for update in range(args.updates):
        if update == WARMUP_UPDATES:
            synchronize()
            begin = time.perf_counter()
        batch = {name: values.to(DEVICE) for name, values in next(batches).items()}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=BF16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    return time.perf_counter() - begin


def throughput(args: argparse.Namespace) -> list[str]:
    data = DataArguments()
    tokenizer = load_tokenizer(data)
    blocks, _ = load_blocks(data, tokenizer)
    if args.updates * args.batch > len(blocks):
        raise SystemExit(f"{args.updates} updates of {args.batch} blocks need more than the {len(blocks)} there are")

    def make_model():
        return new_model(ModelArguments(preset=args.preset), len(tokenizer), data.block_size, tokenizer.eos_token_id)

    tokens = (args.updates - WARMUP_UPDATES) * args.batch * data.block_size
    bare, recipe = [], []
    for _ in range(args.repeats):
        bare.append(tokens / seconds_of_bare_loop(make_model, blocks, args))
        recipe.append(tokens / seconds_of_trainer(make_model, blocks, args))
    ratios = sorted(ours / theirs for ours, theirs in zip(recipe, bare, strict=True))
    what = f"recipe / bare loop, {args.preset}, {args.batch} x {data.block_size} tokens, {args.repeats} repeats"
    result = f"{median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
    return [
        row(what, result, ">= 0.9"),
        row("tokens/s, recipe and bare loop (medians)", f"{median(recipe):,.0f} and {median(bare):,.0f}", ""),
    ]


def microseconds_of_a_step(make_scheduler, steps: int = 20_000) -> float:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=PEAK_LR)
    scheduler = make_scheduler(optimizer, steps)
    optimizer.step()
    begin = time.perf_counter()
    for _ in range(steps):
        scheduler.step()
    return (time.perf_counter() - begin) / steps * 1e6


def scheduler_step(args: argparse.Namespace) -> list[str]:
    makers = {
        "WSDScheduler": lambda o, n: hf_wsd.WSDScheduler(o, hf_wsd.wsd(n, num_warmup_steps=n // 10)),
        "transformers' LambdaLR": lambda o, n: get_wsd_schedule(o, n // 10, n // 10, num_training_steps=n),
    }
    times = {name: [microseconds_of_a_step(make) for _ in range(args.repeats)] for name, make in makers.items()}
    targets = {"WSDScheduler": "<= 10 us"}
    return [
        row(f"a step of {name}, two groups", f"{median(t):.2f} us ({min(t):.2f}-{max(t):.2f})", targets.get(name, ""))
        for name, t in times.items()
    ]


def import_time(args: argparse.Namespace) -> list[str]:
    def milliseconds(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        return (time.perf_counter() - begin) * 1e3

    pairs = [(milliseconds("pass"), milliseconds("import hf_wsd")) for _ in range(4 * args.repeats)]
    bare, ours = (median(column) for column in zip(*pairs, strict=True))
    torch_loaded = "import sys, hf_wsd; sys.exit('torch' in sys.modules)"
    without_torch = subprocess.run([sys.executable, "-c", torch_loaded], cwd=ROOT, check=False).returncode == 0
    return [
        row("`import hf_wsd`, above a bare interpreter", f"{ours - bare:.1f} ms ({ours:.1f} in all)", "< 60 ms"),
        row("`import hf_wsd` leaves torch unloaded", "yes" if without_torch else "no", "yes"),
    ]


def first_step(args: argparse.Namespace) -> list[str]:
    deep = [sys.executable, str(Path(__file__).with_name("deep.py")), "--repeats", str(args.repeats)]
    seconds = json.loads(subprocess.run(deep, check=True, stdout=subprocess.PIPE).stdout)
    start_up, rows = seconds.pop("start_up"), []
    for where, cpu in seconds.items():
        for start, name, target in ((start_up, "", "<= 1.3"), (0.0, f" without the start-up of {start_up:.1f} s", "")):
            pairs = zip(cpu["branch"], cpu["fresh"], strict=True)
            ratios = sorted((start + branch) / (start + fresh) for branch, fresh in pairs)
            what = f"first step of a branch / of a fresh run, 1,000,000 steps deep, {where}{name}"
            rows.append(row(what, f"{median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})", target))
    return rows


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def hardware() -> str:
    names = {line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else (names or {platform.machine()}).pop()
    return (
        f"{device}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, {'bf16' if BF16 else 'fp32'}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="0.5M", help="size of the recipe's model")
    parser.add_argument("--batch", type=int, default=8, help="blocks in a batch")
    parser.add_argument("--updates", type=int, default=60, help=f"updates of a repeat; {WARMUP_UPDATES} are not timed")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement")
    parser.add_argument("--quick", action="store_true", help="a few updates and two repeats, to see that it works")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.md"))
    args = parser.parse_args()
    if args.quick:
        args.updates, args.repeats = WARMUP_UPDATES + 5, 2
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hf_wsd.register()
    rows = [row("what", "median (range)", "target"), row("---", "---", "---")]
    rows += [*throughput(args), *scheduler_step(args), *import_time(args), *first_step(args)]
    command = " ".join(["python tests/bench/bench.py", *sys.argv[1:]])
    table = "\n".join([f"`{command}` on {hardware()}.", "", *rows])
    print(table)
    args.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
