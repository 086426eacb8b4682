"""The loss on a fixed sequence of token ids, by which `hf-wsd publish` knows a copy of a model."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from inspect import signature
from pathlib import Path
from typing import Any

import torch

LENGTH = 64  # token ids, or as many as the model has positions for


def make_loadable(checkpoint: Path, *, model: Any, processing_class: Any = None, **_: Any) -> None:
    """Save config and tokenizer beside the weights where Trainer has left them out: in FSDP's sharded checkpoints."""
    with suppress(OSError, AttributeError):  # no room, or no model of transformers: publishing says what is missing
        there = ("config.json", "adapter_config.json")  # beside an adapter, a config would hide it from transformers
        if not any((checkpoint / name).exists() for name in there):
            config = copy(model.config)
            config.architectures = [type(model).__name__.removeprefix("FSDP")]  # fully_shard puts it there
            config.save_pretrained(checkpoint)
            if processing_class is not None:
                processing_class.save_pretrained(checkpoint)


def probe(model: Any) -> float | None:
    """The model's loss (mean nats per token) on token ids that its vocabulary size alone determines.

    Training is left as it is: no random number is drawn, no gradient made, train mode put back.

    Args:
        model: with all its weights in this process, `input_ids` and `labels`.

    Returns:
        None where no loss comes out: a model without labels, or one whose weights are spread over processes.
    """
    weights = list(model.parameters())
    spread = any(hasattr(weight, "placements") or hasattr(weight, "ds_id") for weight in weights)
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if spread or not isinstance(size, int) or not {"input_ids", "labels"} <= {*signature(model.forward).parameters}:
        return None
    length = min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)
    index = torch.arange(length, device=weights[0].device)
    ids = ((index * index + 7 * index + 1) % size)[None]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)
    except (RuntimeError, ValueError, TypeError, AttributeError):  # it wants more than token ids
        return None
    finally:
        model.train(was_training)
