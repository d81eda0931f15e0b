"""Losses of language models, and what they are asked: the shift to the next token, cross entropy over the vocabulary (arXiv:1810.04805,
section 3.1), over its k best alone (sparse softmax, arXiv:2112.12433), and unlikelihood of what was said before (arXiv:1908.04319)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fishpaw import checks
from fishpaw.contracts import Batch
from fishpaw.errors import DataError

__all__ = ["masked_cross_entropy", "next_tokens", "previous_tokens", "sparse_cross_entropy", "successors", "unlikelihood"]


def next_tokens(batch: Batch, *, segment: int | None = None) -> tuple[Tensor, Tensor]:
    """What a causal model is asked: at [m], the flat indices of the tokens that have a successor in their sequence, and targets [m], the
    successors' ids; both int64, in flat order. segment: only where the successor is of that segment: UniLM's target is segment 1, and the
    last token of the source is asked for its first one (arXiv:1905.03197). Padded (on either side) and packed batches alike.

        at, targets = next_tokens(batch)
        total, count = masked_cross_entropy(model(batch, logits_at=at).logits, targets)

    Best called where batches are collated: on a GPU it waits, since how many there are decides a shape. DataError: a segment of a batch
    that has none.
    """
    at, after = successors(batch, segment=segment)
    return at, batch.ids[after]


def successors(batch: Batch, *, segment: int | None = None) -> tuple[Tensor, Tensor]:
    """The pairs of `next_tokens` by their places: at [m] and after [m], flat indices of a token and of the next one of its sequence."""
    kept = _kept(batch).nonzero().squeeze(1)
    before, after = kept[:-1], kept[1:]
    pairs = batch.row[before] == batch.row[after]
    if segment is not None:
        pairs &= _segments(batch, segment)[after] == segment
    return before[pairs], after[pairs]


def previous_tokens(batch: Batch, at: Tensor, targets: Tensor, *, segment: int | None = None, ignore: int = -100) -> Tensor:
    """What `unlikelihood` is against: for each of `next_tokens` the different tokens of its sequence up to its place, but not its target
    -> [m c] int64, ascending in a row, `ignore` where a row has fewer. segment: only tokens of that one, so that a summary may still
    say what its source says. c: the longest sequence, with padding. DataError: a segment of a batch that has none."""
    width = max(grid.t for grid in batch.grids)
    places = batch.first[batch.row[at]][:, None] + torch.arange(width, device=at.device)                 # [m c]
    seen = places <= at[:, None]
    places = places.clamp_max(len(batch.ids) - 1)
    seen &= _kept(batch)[places]
    if segment is not None:
        seen &= _segments(batch, segment)[places] == segment
    ids = batch.ids[places]
    ids = ids.masked_fill(~seen | (ids == targets[:, None]), ignore).sort(1).values
    again = torch.zeros_like(seen)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return ids.masked_fill(again, ignore)


def masked_cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over targets of -log softmax(logits)[target], and the number of targets that count.

    logits [n v], targets [n] int64 (`ignore`: nothing to predict there) -> sum [], count [], fp32 at least: 21,128 terms of a bf16
    softmax lose two digits. Accumulate both over batches and devices and divide once: then each token weighs the same, however
    they were cut into batches. No target, or n = 0: (0, 0), gradients 0. The shift by one of causal models: `next_tokens`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))               # [n v]
    total = cross_entropy(logits, targets, ignore_index=ignore, reduction="sum", label_smoothing=smoothing)
    return total, (targets != ignore).sum().to(logits.dtype)


def sparse_cross_entropy(logits: Tensor, targets: Tensor, *, k: int = 10, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over targets t of log(sum of exp(s) over the k largest logits s) - s_t, and the number of targets that count.

    Shapes, types and zeros as in `masked_cross_entropy`, which it never exceeds, and equals where k is the vocabulary or more. Tokens
    outside the k best have no gradient: a model that is fine-tuned need not push down what is down already and fits less tightly; one that
    begins from nothing underfits. A target outside the k best costs log(k) at least. Source: arXiv:2112.12433, first used in
    kexue.fm/archives/8046. ConfigError: k below 1.
    """
    checks.whole("k", k, least=1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))                                # [n v]
    ignored = targets == ignore
    own = logits.gather(1, targets.masked_fill(ignored, 0)[:, None]).squeeze(1)
    best = logits.topk(min(k, logits.shape[1]), dim=1).values                                           # [n k]
    total = (best.logsumexp(1) - own).masked_fill(ignored, 0).sum()
    return total, (~ignored).sum().to(logits.dtype)


def unlikelihood(logits: Tensor, targets: Tensor, negatives: Tensor, *, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over targets t of sum over its negatives c of -log(1 - softmax(logits)[c]), and the number of targets that count.

    logits [n v], targets [n], negatives [n c] int64, `ignore` where there is none, as `previous_tokens` makes them; a target among its own
    negatives is passed over. Types and zeros as in `masked_cross_entropy`, to whose sum this one is added with a factor, 1 in the paper:
    the counts are the same. Finite even where a probability is 1; no term's gradient exceeds 1. Source: arXiv:1908.04319, section 5.1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))                                # [n v]
    ignored = targets == ignore
    absent = (negatives == ignore) | (negatives == targets[:, None]) | ignored[:, None]                 # [n c]
    chosen = negatives.masked_fill(absent, 0)
    norm = logits.logsumexp(1, keepdim=True)                                                            # [n 1]
    top = logits.argmax(1, keepdim=True)
    # Only the largest p can come near 1, where log(1 - p) loses its digits: there 1 - p is the sum of all the others.
    rest = logits.scatter(1, top, float("-inf")).logsumexp(1, keepdim=True) - norm
    largest = chosen == top
    logp = (logits.gather(1, chosen) - norm).masked_fill(largest | absent, float("-inf"))
    terms = torch.where(largest, rest, (-logp.exp()).log1p()).masked_fill(absent, 0)
    return -terms.sum(), (~ignored).sum().to(logits.dtype)


def _kept(batch: Batch) -> Tensor:
    """True where there is a token, [n]."""
    return torch.cat([grid.flat(rows.keep) for grid, rows in zip(batch.grids, batch.rows, strict=True)])


def _segments(batch: Batch, segment: int) -> Tensor:
    if batch.segments is None:
        raise DataError(f"The tokens of segment {segment} are asked for, but the batch has no segments.", fix="Give segments.")
    return batch.segments
