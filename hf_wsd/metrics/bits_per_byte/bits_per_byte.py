"""Loss, perplexity and bits per byte of a language model, as an `evaluate` metric that is loaded by path."""

from __future__ import annotations

import math

import datasets
import evaluate

_DESCRIPTION = """\
Loss, perplexity and bits per byte of a language model, weighted by tokens and by bytes.

A mean of batch losses is wrong where batches differ in tokens, and a mean of perplexities always is: so the
metric takes sums. Loss and perplexity compare models with one tokenizer; bits per byte compares any two
models on one text.
"""

_KWARGS_DESCRIPTION = """
Args:
    nll_sum (`list` of `float`): negative log-likelihoods (nats), summed over the predicted tokens of a row.
    n_tokens (`list` of `int`): predicted tokens of a row.
    n_bytes (`list` of `int`): UTF-8 bytes that those tokens stand for; 0 in every row if unknown.

A row may be a batch, a rank or the whole of an evaluation: only the sums of the columns count.

Returns:
    loss (`float`): sum(nll_sum) / sum(n_tokens), in nats a token.
    perplexity (`float`): exp(loss); infinite from a loss of 709 on.
    bits_per_byte (`float`): sum(nll_sum) / ln 2 / sum(n_bytes); left out where no row has bytes.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("hf_wsd/metrics/bits_per_byte")
    >>> metric.compute(nll_sum=[2.0, 7.0], n_tokens=[1, 2], n_bytes=[4, 8])  # doctest: +ELLIPSIS
    {'loss': 3.0, 'perplexity': 20.08553..., 'bits_per_byte': 1.08202...}
"""

_CITATION = """\
@article{gao2020pile,
  title   = {The Pile: An 800GB Dataset of Diverse Text for Language Modeling},
  author  = {Gao, Leo and Biderman, Stella and Black, Sid and Golding, Laurence and Hoppe, Travis and
             Foster, Charles and Phang, Jason and He, Horace and Thite, Anish and Nabeshima, Noa and
             Presser, Shawn and Leahy, Connor},
  journal = {arXiv preprint arXiv:2101.00027},
  year    = {2020},
  note    = {Defines bits per byte in the guidelines for its benchmark}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BitsPerByte(evaluate.Metric):
    """Sums of (nll_sum, n_tokens, n_bytes) rows to loss, perplexity and bits per byte."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {"nll_sum": "float64", "n_tokens": "int64", "n_bytes": "int64"}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({name: datasets.Value(dtype) for name, dtype in columns.items()}),
        )

    def _compute(self, nll_sum: list[float], n_tokens: list[int], n_bytes: list[int]) -> dict[str, float]:
        nll, tokens, text_bytes = math.fsum(nll_sum), sum(n_tokens), sum(n_bytes)
        if tokens <= 0:
            raise ValueError(f"the loss of {tokens} tokens is undefined: n_tokens must sum to at least 1")
        loss = nll / tokens
        # exp overflows from 709.8 on, which a diverged run can reach: no reason to end it with an error.
        result = {"loss": loss, "perplexity": math.inf if loss > 709 else math.exp(loss)}
        if text_bytes:
            result["bits_per_byte"] = nll / math.log(2) / text_bytes
        return result
