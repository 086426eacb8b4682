"""The page of a revision on the hub: metadata that the hub reads, and text; both from the family's records alone."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_wsd.about import (
    auto_class,
    base_model,
    code,
    command_of,
    config_of,
    data_facts,
    folders_of,
    hyper_parameters,
    in_decay,
    is_line,
    limits,
    model_facts,
    plain,
    schedule_rows,
    sources,
)
from hf_wsd.continuing import ways_on
from hf_wsd.errors import PublishError
from hf_wsd.lengths import show_tokens
from hf_wsd.revisions import Revision
from hf_wsd.scrubbing import clean
from hf_wsd.segment import Phase
from hf_wsd.told import data_of, evaluation_of, hub_id, is_recipe

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
METRICS = ("bits_per_byte", "perplexity", "accuracy", "loss")  # what a logged name ends in
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)


def make_card(
    revision: Revision,
    siblings: Sequence[Revision],
    *,
    repo: str,
    with_optimizer: Collection[str] = (),
    license: str | None = None,
) -> ModelCard:
    """The card of a revision; the same family gives the same text.

    Args:
        revision: which the card is about.
        siblings: all revisions that are published, this one among them.
        repo: USER/NAME.
        with_optimizer: names of the stable ones that have what an exact resume needs.
        license: identifier of the model's licence, if its owner gave one.

    Raises:
        PublishError: the licence is no identifier.
    """
    from huggingface_hub import ModelCard

    if license is not None and not _LICENSE.fullmatch(license):
        raise PublishError(
            f"{license!r} is no identifier of a licence: give one that the hub knows, such as apache-2.0, mit, "
            "cc-by-4.0 or other"
        )
    config = config_of(revision)
    causal = auto_class(config) == "AutoModelForCausalLM"
    metadata = _metadata(revision, config, name=repo.rpartition("/")[2], license=license)
    card: ModelCard = ModelCard.from_template(
        metadata,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        repo=repo,
        title=plain(f"{repo.rpartition('/')[2]}, {revision.name}"),
        auto_class=auto_class(config),
        has_tokenizer=any(any(folder.glob("tokenizer*")) for folder in folders_of(revision)),
        revisions=[_row(one, siblings, this=one.name == revision.name) for one in siblings],
        example=json.dumps(revision.name),
        model=model_facts(revision, config),
        schedule=[*schedule_rows(revision)],
        sources=[*sources(revision)],
        metrics={plain(name): f"{value:.6g}" for name, value in _metrics(revision).items()},
        data=[*data_facts(revision)],
        hyper=[*hyper_parameters(revision)],
        start=_start(revision, siblings, repo, with_optimizer) if causal else None,
        limits=[*limits(revision, siblings)],
        longest=next((code(one.name) for one in reversed(siblings) if one.kind == "decay"), ""),
        kind=revision.kind,
        tokens="" if revision.tokens is None else show_tokens(revision.tokens),
        line=is_line(revision),
        in_decay=in_decay(revision),
        evaluated_on=plain(evaluation_of(command_of(revision))),
    )
    return card


# --- metadata ---


def _metadata(revision: Revision, config: Mapping[str, Any], *, name: str, license: str | None) -> ModelCardData:
    from huggingface_hub import ModelCardData

    results = [*_results(revision)]
    command = command_of(revision)
    named = [data_of(command)[1], *(hub_id(name, command) for name in revision.record.decay_data if "/" in name)]
    datasets = [*dict.fromkeys(filter(None, named))]
    return ModelCardData(
        library_name="transformers" if config else None,
        license=license,
        pipeline_tag="text-generation" if auto_class(config) == "AutoModelForCausalLM" else None,
        tags=[*_tags(revision)],
        datasets=datasets or None,
        base_model=base_model(revision),
        eval_results=results or None,
        model_name=name if results else None,
    )


def _tags(revision: Revision) -> Iterator[str]:
    yield "hf_wsd"
    schedule = revision.record.schedule
    if any(segment.phase is Phase.STABLE for segment in schedule.segments):
        yield "warmup-stable-decay"
        yield "wsd-s" if is_line(revision) else "wsd"
    yield "decayed" if revision.kind == "decay" else "stable-phase"


def _metrics(revision: Revision) -> dict[str, float]:
    """What the evaluation gave: the loss first."""
    found = {name: value for name, value in revision.losses.items() if isfinite(value)}
    known = ("loss", "perplexity", "bits_per_byte")
    return {
        name: found[name] for name in [*(name for name in known if name in found), *sorted(found.keys() - {*known})]
    }


def _results(revision: Revision) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    command = command_of(revision)
    _, data_set = data_of(command)
    for name, value in _metrics(revision).items():
        yield EvalResult(
            task_type="text-generation" if auto_class(config_of(revision)) == "AutoModelForCausalLM" else "other",
            dataset_type=data_set if data_set and is_recipe(command) else "other",
            dataset_name=evaluation_of(command),
            metric_type=next((one for one in METRICS if name.endswith(one)), clean(name)),
            metric_name=" ".join(clean(name).split()),
            metric_value=value,
        )


# --- the family ---


def _row(one: Revision, siblings: Sequence[Revision], *, this: bool) -> dict[str, str]:
    parent = next((other.name for other in siblings if other.kind == "stable" and other.step == one.fork), None)
    shown = {name: f"{value:.4f}" for name, value in _metrics(one).items() if name in ("loss", "bits_per_byte")}
    left = f"step {one.fork:,}" if one.fork is not None else ""
    return {
        "name": f"**{code(one.name)}** (this one)" if this else code(one.name),
        "kind": "finished" if one.kind == "decay" else "stable",
        "step": f"{one.step:,}",
        "tokens": "" if one.tokens is None else show_tokens(one.tokens),
        "from": code(parent) if parent else left,
        "changed": plain(one.run.changed) if one.kind == "decay" else "",
    } | shown


def _start(
    revision: Revision, siblings: Sequence[Revision], repo: str, with_optimizer: Collection[str]
) -> dict[str, Any] | None:
    """The stable revision to go on from: this one, the one it left, else the longest; with its commands."""
    stable = [one for one in siblings if one.kind == "stable"]
    if not stable:
        return None
    near = [one for one in stable if one.name == revision.name or one.step == revision.fork]
    chosen = (near or stable)[0 if near else -1]
    exact = chosen.name in with_optimizer
    ways = [*ways_on(chosen, repo, exact=exact)]
    recipe = is_recipe(command_of(revision))
    return (
        {"name": code(chosen.name), "exact": exact, "recipe": recipe, "ways": ways, "step": f"{chosen.step:,}"}
        if ways
        else None
    )
