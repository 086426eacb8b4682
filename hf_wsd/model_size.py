"""How many parameters a model has: N of a scaling law, by both counts."""

from __future__ import annotations

from typing import Any

from torch import nn


def count_parameters(model: Any) -> dict[str, int | None]:
    """Trainable parameters of a model, shared ones counted once: all of them, and those that are no embeddings.

    Embeddings are the tables that ids look up (tokens, learned positions, token types) and the output head, tied or
    not: the part of a small model whose compute grows least with it (arXiv 2001.08361 leaves it out, 2203.15556 does
    not).

    Args:
        model: a torch module, or None.

    Returns:
        Values of the fields `parameters` and `parameters_without_embeddings` of a record; None where not known: no
        model, or for the second one that does not say what its output head is (`get_output_embeddings`).

    >>> count_parameters(nn.Linear(3, 2))
    {'parameters': 8, 'parameters_without_embeddings': None}
    """
    if model is None:
        return {"parameters": None, "parameters_without_embeddings": None}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    counts: dict[str, int | None] = {"parameters": sum(weight.numel() for weight in trained)}
    if not hasattr(model, "get_output_embeddings"):
        return counts | {"parameters_without_embeddings": None}
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()
    embedded = {id(weight) for module in (*tables, head) if module is not None for weight in module.parameters()}
    inner = sum(weight.numel() for weight in trained if id(weight) not in embedded)
    return counts | {"parameters_without_embeddings": inner}
