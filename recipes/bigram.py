"""A language of certain and uncertain bigrams, from which the river valley emerges (arXiv 2410.05192).

    python recipes/bigram.py --output_dir runs/bigram                  # both models, five seeds
    python recipes/bigram.py --output_dir runs/table --models table    # under a minute

Words as in a book: a first letter is a guess among many words, the rest of the word follows from it. In a table of
logits with the softmax of row i for the successor of token i, the curvature of row i at the optimum is
p(i) (diag(P_i) - P_i P_i^T), P_i the successors' probabilities and p(i) the frequency: zero where the successor is
certain (a flat river, along which the loss falls with the sum of lr), sharp where it is not (the hills).

Trained are that table (SGD) and a small GPT-2 (Trainer, AdamW), with a constant lr, WSD, WSD-S and cosine. Measured is
the loss above the entropy of the language, so that 0 is perfect, apart for certain and uncertain bigrams. Into
OUTPUT_DIR go bigram.json, bigram.md (the statements of the paper, and whether they hold here) and bigram.png.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from bigram_figures import figure
from bigram_findings import Findings, Run, describe, write
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_wsd import WSDScheduler
from hf_wsd.baselines import constant, cosine
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import SettingsError, WSDError
from hf_wsd.schedule import Schedule

FIRST, WORDS, REST = 4, 32, 3  # uncertain tokens, words that begin with each, certain tokens of a word
CONCENTRATION = 0.5  # of the words' probabilities (Dirichlet): a few are frequent, most are rare
POINTS = 40  # evaluations of one run
LENGTH, EVALUATED, WIDTH = 32, 128, 32  # tokens of a sequence, sequences to evaluate on, width of GPT-2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How long a model trains, with how many samples a step, at which peak lrs; all schedules are compared at `lr`."""

    steps: int
    batch: int
    lrs: tuple[float, ...]
    lr: float


TABLE = Setting(steps=3000, batch=16, lrs=(2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0), lr=16.0)  # pairs of tokens
GPT2 = Setting(steps=400, batch=4, lrs=(2e-3, 4e-3, 8e-3, 1.6e-2), lr=8e-3)  # sequences
NAMES = ("constant", "WSD", "WSD-S", "cosine")


@dataclass(frozen=True, kw_only=True)
class Language:
    """A Markov chain; the first `FIRST` tokens are the uncertain ones.

    Args:
        successors: P, shape (vocabulary, vocabulary): row i has the probabilities of what follows token i.
        frequency: p, shape (vocabulary,): how often a token occurs in a long text.
    """

    successors: torch.Tensor
    frequency: torch.Tensor

    def pairs(self, count: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens drawn by frequency, and a successor of each."""
        first = torch.multinomial(self.frequency, count, replacement=True, generator=rng)
        return first, torch.multinomial(self.successors[first], 1, generator=rng)[:, 0]

    def text(self, sequences: int, rng: torch.Generator) -> torch.Tensor:
        """Samples of the language, shape (sequences, LENGTH)."""
        tokens = [torch.multinomial(self.frequency, sequences, replacement=True, generator=rng)]
        while len(tokens) < LENGTH:
            tokens.append(torch.multinomial(self.successors[tokens[-1]], 1, generator=rng)[:, 0])
        return torch.stack(tokens, dim=1)


def make_language(seed: int, *, first: int = FIRST, words: int = WORDS, rest: int = REST) -> Language:
    """A language with its own words: after the last token of a word comes a first letter that is always the same."""
    rng = np.random.default_rng(seed)
    letters = np.arange(first * words * rest).reshape(rest, first * words) + first
    size = first + letters.size
    successors = np.zeros((size, size))
    for token in range(first):
        successors[token, letters[0, token * words : (token + 1) * words]] = rng.dirichlet([CONCENTRATION] * words)
    for before, after in pairwise(letters):
        successors[before, after] = 1
    successors[letters[-1], rng.permutation(first * words) % first] = 1
    values, vectors = np.linalg.eig(successors.T)
    frequency = np.abs(vectors[:, np.argmin(abs(values - 1))].real)
    return Language(successors=torch.tensor(successors), frequency=torch.tensor(frequency / frequency.sum()))


def divergence(successors: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """Loss above the entropy of each position: what is left where the model gives `log_probabilities`."""
    return (torch.xlogy(successors, successors) - successors * log_probabilities).sum(-1)


def train_table(
    languages: Sequence[Language], lrs: Sequence[float], schedule: Schedule, *, batch: int = 16, points: int = POINTS
) -> dict[int, torch.Tensor]:
    """SGD on tables of logits, all lrs and languages at once; the lrs of a language see the same samples.

    Returns:
        By step, the losses of certain and uncertain bigrams, shape (lrs, languages, 2).
    """
    steps = schedule.total_steps or 0
    successors = torch.stack([language.successors for language in languages]).float()
    frequency = torch.stack([language.frequency for language in languages]).float()
    size = frequency.shape[1]
    tables = torch.zeros(len(lrs), len(languages), size, size)
    rows = tables.view(-1, size)  # index_add_ on it writes into the tables
    offsets = (torch.arange(len(lrs) * len(languages)) * size).view(len(lrs), len(languages), 1)
    each_lr = torch.tensor(lrs).repeat_interleave(len(languages) * batch)[:, None] / batch
    rngs = [torch.Generator().manual_seed(seed) for seed in range(len(languages))]
    samples = [language.pairs(steps * batch, rng) for language, rng in zip(languages, rngs, strict=True)]
    first, second = (torch.stack(tokens).view(len(languages), steps, batch) for tokens in zip(*samples, strict=True))
    losses = {}
    for step, multiplier in enumerate(schedule.multipliers()):
        touched = (offsets + first[:, step]).flatten()
        gradient = torch.softmax(rows[touched], dim=-1)
        gradient[torch.arange(len(touched)), second[:, step].expand(len(lrs), -1, -1).flatten()] -= 1
        rows.index_add_(0, touched, -multiplier * each_lr * gradient)
        if (step + 1) % (steps // points) == 0:
            above = frequency * divergence(successors, torch.log_softmax(tables, dim=-1))
            losses[step + 1] = torch.stack([above[..., FIRST:].sum(-1), above[..., :FIRST].sum(-1)], dim=-1)
    return losses


def formula(language: Language, row: int) -> torch.Tensor:
    """The curvature of a row of the table at the optimum: p(i) (diag(P_i) - P_i P_i^T)."""
    successors = language.successors[row]
    return language.frequency[row] * (torch.diag(successors) - torch.outer(successors, successors))


def measured_curvature(language: Language, row: int) -> torch.Tensor:
    """The Hessian of the loss in one row at the optimum, by automatic differentiation."""

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return -language.frequency[row] * (language.successors[row] * torch.log_softmax(logits, dim=0)).sum()

    return torch.func.jacrev(torch.func.jacrev(loss))(language.successors[row].clamp(min=1e-30).log())


def sharpness(language: Language) -> float:
    """The largest curvature of the table at the optimum; SGD is stable below 2 / this."""
    return max(float(torch.linalg.eigvalsh(formula(language, row))[-1]) for row in range(FIRST))


class Measure(TrainerCallback):
    """Notes the losses of certain and uncertain bigrams while a model trains."""

    def __init__(self, language: Language, tokens: torch.Tensor, every: int) -> None:
        self.tokens, self.every = tokens, every
        self.successors = language.successors.float()[tokens]
        self.losses: dict[int, tuple[float, float]] = {}

    @torch.no_grad()
    def on_step_end(self, args, state, control, *, model, **_):  # noqa: D102
        if state.global_step % self.every == 0:
            model.eval()
            above = divergence(self.successors, torch.log_softmax(model(self.tokens).logits, dim=-1))
            uncertain = self.tokens < FIRST
            self.losses[state.global_step] = ((above * ~uncertain).mean().item(), (above * uncertain).mean().item())
            model.train()


def train_gpt2(language: Language, lr: float, schedule: Schedule, *, seed: int, points: int = POINTS) -> Measure:
    """A one-layer GPT-2 on samples of a language; each step sees new ones."""
    steps, batch = schedule.total_steps or 0, GPT2.batch
    rng = torch.Generator().manual_seed(seed)
    measure = Measure(language, language.text(EVALUATED, rng), steps // points)
    set_seed(seed)
    sizes = {"vocab_size": len(language.frequency), "n_positions": LENGTH, "n_embd": WIDTH, "n_layer": 1, "n_head": 2}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "bos_token_id", "eos_token_id"), 0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **off))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model=model,
            args=settings,
            train_dataset=[{"input_ids": row, "labels": row} for row in language.text(steps * batch, rng)],
            optimizers=(optimizer, WSDScheduler(optimizer, schedule)),
            callbacks=[measure],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for the results
        trainer.train()
    return measure


def schedules(steps: int, warmup: int = 0) -> dict[str, Schedule]:
    """What is compared; the decays have a fifth of the steps."""
    start = {"num_warmup_steps": warmup}
    made = (
        constant(steps, **start),
        wsd(steps, decay_fraction=0.2, **start),
        wsd_s(steps, cycle_ends=[steps // 4, steps // 2, steps], decay_fraction=0.2, **start),
        cosine(steps, **start),
    )
    return dict(zip(NAMES, made, strict=True))


def run_table(seeds: int) -> Findings:
    """Every run of the table model."""
    languages, runs = [make_language(seed) for seed in range(seeds)], []
    for name, schedule in schedules(TABLE.steps).items():
        lrs = TABLE.lrs if name in ("constant", "WSD") else (TABLE.lr,)
        losses = train_table(languages, lrs, schedule, batch=TABLE.batch)
        for at, lr in enumerate(lrs):
            for seed in range(seeds):
                curve = {step: rounded(values[at, seed].tolist()) for step, values in losses.items()}
                runs.append(Run(model="table", schedule=name, lr=lr, seed=seed, losses=curve))
    limit = min(2 / sharpness(language) for language in languages)
    return Findings(model="table", lr=TABLE.lr, limit=limit, runs=tuple(runs))


def run_gpt2(seeds: int, *, lrs: Sequence[float] = GPT2.lrs, names: Sequence[str] = NAMES) -> Findings:
    """Every run of GPT-2, or those of some peak lrs and schedules."""
    runs, made = [], schedules(GPT2.steps, warmup=20)
    for name in names:
        for lr in lrs if name in ("constant", "WSD") else (GPT2.lr,):
            for seed in range(seeds):
                measure = train_gpt2(make_language(seed), lr, made[name], seed=seed)
                curve = {step: rounded(values) for step, values in measure.losses.items()}
                runs.append(Run(model="gpt2", schedule=name, lr=lr, seed=seed, losses=curve))
                print(f"GPT-2, {name}, lr {lr:g}, seed {seed}: {sum(runs[-1].end):.4f}", file=sys.stderr, flush=True)
    return Findings(model="gpt2", lr=GPT2.lr, limit=None, runs=tuple(runs))


def rounded(values: Sequence[float]) -> tuple[float, float]:
    """Certain and uncertain loss with as many digits as mean anything."""
    certain, uncertain = (float(f"{value:.4g}") for value in values)
    return certain, uncertain


MODELS: dict[str, Callable[[int], Findings]] = {"table": run_table, "gpt2": run_gpt2}


def main() -> None:
    """Train everything; write the results, the statements and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--seeds", type=int, default=5, help="languages, each with its own samples and weights")
    args = parser.parse_args()
    if args.seeds < 2:
        raise SettingsError(f"--seeds {args.seeds} has no spread: give at least 2, better 5")
    language = make_language(0)
    rows = range(len(language.frequency))
    error = max(float((measured_curvature(language, row) - formula(language, row)).abs().max()) for row in rows)
    findings = [MODELS[model](args.seeds) for model in args.models]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write(args.output_dir / "bigram.json", findings, error)
    text = "\n".join(describe(findings, error))
    (args.output_dir / "bigram.md").write_text(text + "\n", encoding="utf-8")
    figure(findings).savefig(args.output_dir / "bigram.png", metadata={"Software": None})
    print(text)


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
