"""Teacher forcing with n-grams (TeaForN, arXiv:2010.03494): what the decoder made of a token is read in that token's place once more, so
that a state answers for the tokens that follow, too. Only training changes: the model, its weights and how it decodes stay as they are.

A later pass reads [e_0, h_1, …, h_(L-1)] of the pass before it in place of the embeddings [e_0, e_1, …, e_(L-1)] and is asked for the
same tokens. So the n-th one says token t knowing the true ones up to t - n, and has its own states for those between, as in decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError
from fishpaw.losses.generation import masked_cross_entropy, successors
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.training import refuse_ending

__all__ = ["expectation", "hidden_states", "teaforn"]

Feed = Callable[[Tensor, Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def hidden_states(hidden: Tensor, logits: Tensor, table: Tensor) -> Tensor:
    """hidden [m d] as it is: the paper's choice. ConfigError where the tokens' vectors, table [v e], are of another width."""
    if hidden.shape[1] != table.shape[1]:
        raise ConfigError(
            f"Hidden states of {hidden.shape[1]} units can't stand for token vectors of {table.shape[1]}.", fix="Give feed=expectation."
        )
    return hidden


def expectation(hidden: Tensor, logits: Tensor, table: Tensor, *, k: int | None = None) -> Tensor:
    """The mean vector of the k most probable tokens, weighted by their probabilities, of all if k is None: logits [m v], table [v e]
    -> [m e]. k=1: the vector of the model's own choice. As `feed`: functools.partial(expectation, k=4)."""
    checks.whole("k", k, least=1, optional=True)
    kind = torch.promote_types(logits.dtype, torch.float32)
    if k is None or k >= logits.shape[1]:
        return logits.softmax(1, dtype=kind).to(table.dtype) @ table
    best = logits.topk(k, dim=1)                                                                        # [m k]
    share = best.values.softmax(1, dtype=kind).to(table.dtype)
    return (share[:, None] @ table[best.indices]).squeeze(1)


def teaforn(
    model: Transformer,
    batch: Batch,
    *,
    encoder_batch: Batch | None = None,
    segment: int | None = None,
    weights: Sequence[float] = (1.0, 0.5),
    feed: Feed = hidden_states,
    loss: Loss = masked_cross_entropy,
) -> tuple[Tensor, Tensor]:
    """sum over passes n of weights[n] times the loss of the pass, [], and the number of targets, [], as `loss` counts them.

    batch: the texts with their ends; every token that has a successor is asked for it, in a UniLM model only where that is of `segment`
    (default 1 there, else any). encoder_batch: what the encoder of a decoder reads, once for all passes. weights: of teacher forcing, of
    the second pass …; the paper's fall geometrically. (1,) is teacher forcing to the bit, and so are zeros at the end: those passes are
    not run. Each pass costs a forward and a backward of the decoder. feed(hidden [m d], logits [m v], table [v e]) -> [m e]: what a pass
    hands on in place of token vectors; segments, positions and norm of the embedding are added anew. Gradients flow through it.
    Source: arXiv:2010.03494, section 3. Errors: ConfigError for a model that looks ahead, that has no vocabulary head or one with an
    ending, and for weights.
    """
    if model.mask.clock == "full" or model.config.stream == "positions" or not {"lm", "mlm"} & set(model.heads):
        raise ConfigError("The model can't be asked for its next token.", fix='Load it with mask="causal" or "unilm" and heads=("lm",).')
    refuse_ending(model, "a loss")
    for weight in weights:
        checks.number("weights", weight, least=0)
    passes = max((n for n, weight in enumerate(weights, start=1) if weight), default=0)
    if not passes:
        raise ConfigError(f"weights is {checks.shown(weights)}.", fix="Give at least one that is more than 0.")
    at, after = successors(batch, segment=1 if segment is None and model.mask.clock == "unilm" else segment)
    targets, encoded = batch.ids[after], None if model.encoder is None or encoder_batch is None else model.encode(encoder_batch)
    embedded: Tensor | None = None                                   # the token vectors, as in teacher forcing
    parts: list[Tensor] = []
    for n, weight in enumerate(weights[:passes], start=1):
        output = model(batch, encoded=encoded, encoder_batch=encoder_batch, embedded=embedded, logits_at=at)
        total, count = loss(output.logits, targets)
        parts.append(weight * total)
        if n < passes:
            hidden = output.hidden if batch.shape is None else output.hidden.flatten(0, 1)              # [n d]
            vectors = model.table[batch.ids]
            embedded = vectors.index_copy(0, after, feed(hidden[at], output.logits, model.table).to(vectors.dtype))
    return torch.stack(parts).sum(), count
