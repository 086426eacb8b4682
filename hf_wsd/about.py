"""What a revision is, in words for its card: model, schedule, data, limits. What is not known is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_wsd.continuing import sequence_length
from hf_wsd.curves import tokens_at, training_curve
from hf_wsd.lengths import show_spans, show_tokens
from hf_wsd.lineage import Command
from hf_wsd.revisions import Revision
from hf_wsd.sameness import BITWISE, UNKNOWN
from hf_wsd.scrubbing import clean
from hf_wsd.segment import Phase
from hf_wsd.shapes import SHAPES
from hf_wsd.told import data_of, flags_of, hub_id, is_recipe, showable

SIZES = {  # of config.json, by what they are called here: the names that models have for it
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden size": ("hidden_size", "n_embd", "d_model"),
    "attention heads": ("num_attention_heads", "n_head", "num_heads"),
    "context length": ("max_position_embeddings", "n_positions"),
    "vocabulary": ("vocab_size",),
    "type of the weights": ("dtype", "torch_dtype"),
}
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


# --- texts that others wrote ---


def plain(value: Any) -> str:
    """Any text for Markdown, also in a table: one line that means nothing but itself, and no folder of this machine."""
    words = " ".join(str(clean(str(value))).split())
    return re.sub(r"([\\`*_{}\[\]<>|~$&#!])", r"\\\1", words)


def code(value: Any) -> str:
    """A text as code, also in a table."""
    words = " ".join(str(clean(str(value))).split()).replace("|", "\\|")
    longest = max(map(len, re.findall("`+", words)), default=0)
    return f"{'`' * (longest + 1)} {words} {'`' * (longest + 1)}" if longest else f"`{words}`"


def count(number: int | None) -> str:
    """A number of tokens for people, and the whole of it; "" where it is not known."""
    return "" if number is None else f"{show_tokens(number)}" + (f" ({number:,})" if number >= 1000 else "")


def is_line(revision: Revision) -> bool:
    """Whether the trunk itself decays more than once, as WSD-S does."""
    return sum(kind == "post-decay" for kind in revision.family.identity.schedule.checkpoint_steps().values()) > 1


def base_model(revision: Revision) -> str | None:
    """The model of the hub that the trunk went on from; None where it began anew, or where nobody can tell."""
    parent = revision.family.identity.parent
    if parent and (found := re.fullmatch(r"([\w.-]+/[\w.-]+)@\S+", parent.checkpoint)):
        return found[1]
    command = command_of(revision)
    return hub_id(flags_of(command).get("model_name_or_path"), command)


# --- what the model is ---


def folders_of(revision: Revision) -> tuple[Path, Path]:
    """Where a revision's files may be: its checkpoint, else the folder of its run."""
    return revision.checkpoint, revision.run.path


def config_of(revision: Revision) -> dict[str, Any]:
    """The model's config.json; empty where there is none."""
    files = [folder / "config.json" for folder in folders_of(revision)]
    file = next((file for file in files if file.exists()), None)
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}


def auto_class(config: Mapping[str, Any]) -> str | None:
    """The Auto class that loads a model with its head; None without a config."""
    from transformers.models.auto import modeling_auto

    if not config:
        return None
    heads = {
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    architecture = next(iter(config.get("architectures") or ()), "")
    return next((name for name, models in heads.items() if architecture in models.values()), "AutoModel")


def model_facts(revision: Revision, config: Mapping[str, Any]) -> dict[str, str]:
    """Architecture and size as its config has them, and what it has seen."""
    record, tokens = revision.record, revision.tokens
    facts: dict[str, Any] = {"architecture": ", ".join(map(str, config.get("architectures") or ()))}
    facts["trainable parameters"] = None if record.parameters is None else f"{record.parameters:,}"
    for name, keys in SIZES.items():
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        facts[name] = f"{value:,}" if isinstance(value, int) else value
    facts["tokens seen"] = count(tokens)
    facts["of these in the decay"] = in_decay(revision)
    if tokens and record.parameters:
        facts["tokens per parameter"] = f"{tokens / record.parameters:.3g}"
    facts["trained from"] = base_model(revision)
    return {name: plain(value) for name, value in facts.items() if value}


def in_decay(revision: Revision) -> str:
    """How many of its tokens a model has seen in its decay; "" where nobody counted or there was none."""
    before = None if revision.fork is None else tokens_at(revision, revision.fork)
    if before is None or not revision.tokens:
        return ""
    return f"{show_tokens(revision.tokens - before)} ({100 * (1 - before / revision.tokens):.3g} %)"


def schedule_rows(revision: Revision) -> Iterator[dict[str, str]]:
    """Each phase up to the revision's step."""
    peak = 1.0 if revision.record.peak_lr is None else revision.record.peak_lr
    for start, end, segment in revision.record.schedule.spans():
        last = min(end or revision.step, revision.step)
        if start >= last:
            return
        begin, after = tokens_at(revision, start), tokens_at(revision, last)
        curve = SHAPES[segment.shape].formula if segment.phase is Phase.DECAY and segment.shape in SHAPES else ""
        constant = segment.shape == "constant"
        yield {
            "phase": {Phase.WARMUP: "warm-up", Phase.STABLE: "stable phase", Phase.DECAY: "decay"}[segment.phase],
            "steps": f"{start:,} to {last:,}",
            "tokens": "" if begin is None or after is None else show_tokens(after - begin),
            "lr": f"{segment.end * peak:g}" if constant else f"{segment.start * peak:g} to {segment.end * peak:g}",
            "shape": "constant" if constant else plain(segment.shape) + (f": {plain(curve)}" if curve else ""),
        }


def sources(revision: Revision) -> Iterator[str]:
    """Where the schedule and the shapes of its decays come from."""
    link = "[arXiv {0}](https://arxiv.org/abs/{0})".format
    if any(segment.phase is Phase.STABLE for segment in revision.record.schedule.segments):
        yield f"WSD: {link('2404.06395')}"
    if is_line(revision):
        yield f"WSD-S: {link('2410.05192')}"
    for shape in dict.fromkeys(segment.shape for segment in revision.record.schedule.segments):
        phases = {segment.phase for segment in revision.record.schedule.segments if segment.shape == shape}
        if Phase.DECAY in phases and shape in SHAPES:
            source = _ARXIV.sub(lambda found: link(found[1]), SHAPES[shape].source)
            yield f"decay {plain(shape)}: {source}"


# --- what it was made of ---


def command_of(revision: Revision) -> Command | None:
    """The trunk's: a branch is started with the same, and more."""
    return revision.family.identity.command


def data_facts(revision: Revision) -> Iterator[tuple[str, str]]:
    """The data by name where the trunk's command tells it, and what the record holds of them."""
    record, command = revision.record, command_of(revision)
    name, data_set = data_of(command)
    if data_set:
        yield "training data", f"[{plain(name)}](https://huggingface.co/datasets/{data_set})"
    elif name:
        yield "training data", plain(name)
    if changed := revision.run.changed:
        yield "in the decay", plain(changed)
    samples, _, fingerprint = record.data.partition("-")
    if samples.isdecimal():
        yield "training samples", f"{int(samples):,}" + (f", fingerprint {code(fingerprint)}" if fingerprint else "")
    if length := sequence_length(record):
        yield "tokens of a sample", f"{length:,}"
    epochs = [row["epoch"] for row in training_curve(revision)["rows"] if row.get("epoch")]
    if epochs:
        yield "passes over the data", f"{epochs[-1]:.3g}"


def hyper_parameters(revision: Revision) -> Iterator[tuple[str, str]]:
    """The settings that the record holds, and those of the command that shape a model."""
    record = revision.record
    if record.peak_lrs:
        yield "peak lr", ", ".join(f"{lr:g}" for lr in dict.fromkeys(record.peak_lrs))
    if record.tokens_per_step:
        yield "tokens of a step", f"{record.tokens_per_step:,}"
    flags = {name: value or "True" for name, value in showable(command_of(revision)).items()}
    for name, value in sorted({**flags, **record.setup, **record.optimizer}.items()):
        if isinstance(value, (str, int, float)) and value is not False:
            yield plain(name), code(value)
    if record.versions:
        yield "versions", plain(", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())))


def limits(revision: Revision, siblings: Sequence[Revision]) -> Iterator[str]:
    """What a user of the model has to know, a sentence or two each."""
    record, seen = revision.record, "" if revision.tokens is None else f" on {show_tokens(revision.tokens)} tokens"
    base = base_model(revision)
    if is_recipe(command_of(revision)) and not base:
        yield (
            f"It is a base model: trained{seen} to predict the next token, and for nothing else. It was not tuned to "
            "follow instructions or aligned; it repeats whatever its data hold, wrong or harmful."
        )
    else:
        yield f"It was trained{seen}. Its record tells of no alignment."
    if base and revision.family.identity.parent:
        yield f"It goes on from {code(base)}: its steps and tokens count on from there."
    elif base:
        yield f"It goes on from {code(base)}: what that model has seen is not counted here."
    if revision.kind == "stable":
        yield (
            "It is **not a finished model**: its learning rate is still at the peak, and the decay is still to come."
            + "".join(_falls(revision, siblings))
        )
    yield "It is one run. How much its losses would differ with another seed is not known."
    yield (
        "Losses compare models with the same tokenizer on the same evaluation set. Bits per byte also compare "
        "tokenizers, on the same text."
    )
    yield from _exactness(revision)
    if record.skipped_updates:
        yield f"{record.skipped_updates:,} of its updates were skipped, for an overflow in fp16."
    if record.moved_data:
        yield f"The batches of updates {show_spans(record.moved_data)} were moved to the end of their epoch."


def _falls(revision: Revision, siblings: Sequence[Revision]) -> Iterator[str]:
    before = revision.losses.get("loss")
    for one in siblings:
        after = one.losses.get("loss")
        if one.kind == "decay" and one.fork == revision.step and before is not None and after is not None:
            yield f" The decay to {code(one.name)} took it from {before:.4f} to {after:.4f}."


def _exactness(revision: Revision) -> Iterator[str]:
    """How far a decay is what the trunk would have become with that decay."""
    sameness = revision.record.sameness
    if revision.kind != "decay" or not sameness:
        return
    if sameness.get("level") == UNKNOWN:
        yield "Whether its decay read the samples that the trunk would have read is not known."
    elif sameness.get("level") == BITWISE:
        yield (
            "Nothing that is recorded differs between its decay and its trunk: it is what a single run with the same "
            "schedule gives, bit for bit on the same machine with the same versions."
        )
    for name, change in sameness.get("changes", {}).items():
        yield f"Its decay differs from its trunk in {code(name)}: {plain(change)}."
