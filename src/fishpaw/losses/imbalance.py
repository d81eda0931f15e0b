"""Losses for classes of very different sizes: weights, focal, margins that grow with rarity, smooth F1 (kexue.fm/archives/7708).

Two families. One label of c a row: logits [b c], labels [b] as of `classification.cross_entropy`. Yes or no: scores and labels of one
shape, [n] or [n c]; of a softmax over two classes the score is logits[:, 1] - logits[:, 0]. All return (sum [], count []) in fp32 at least,
(0, 0) with gradients 0 where nothing counts. How frequent the classes are is always given, as a tensor: a batch is too small to tell.
Where to begin: cross entropy and a searched threshold (`metrics.best_threshold`); then `logit_adjusted`; the rest must beat them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from fishpaw import checks
from fishpaw.errors import DataError
from fishpaw.losses.classification import counted, cross_entropy

__all__ = ["asymmetric", "balanced_softmax", "dice", "effective_weights", "f1_weighted", "focal", "ldam", "logit_adjusted", "post_hoc",
           "smooth_f1", "weighted"]


# One label of c

def weighted(logits: Tensor, labels: Tensor, weights: Tensor, *, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over rows of w[y] (-log softmax(logits)[y]), and the sum of w[y]: their quotient doesn't change with the scale of w.

    logits [b c], labels [b] int64, weights [c]. Use `effective_weights`, or 1 / counts. Their effect fades as a
    network comes to fit all its rows (arXiv:1812.03372); `logit_adjusted` moves the border itself.
    """
    counts, chosen = _chosen(logits, labels, ignore)
    logp = _promoted(logits).log_softmax(-1)
    return _summed(-_at(logp, chosen), counts, chosen, weights, logits.shape[-1])


def effective_weights(counts: Tensor, *, beta: float = 0.999) -> Tensor:
    """counts [c], rows of each class -> weights [c] fp64 of mean 1, proportional to (1 - beta) / (1 - beta^n): the more rows a class has
    the less another one adds. beta: 0 gives ones, 1 the limit 1 / n. Source: arXiv:1901.05555. DataError for a class without rows."""
    checks.number("beta", beta, least=0, most=1)
    n = _frequencies(counts, len(counts), "counts").double()
    raw = 1 / n if beta == 1 else 1 / -torch.expm1(n * math.log(beta)) if beta else torch.ones_like(n)
    return raw / raw.mean()


def focal(
    logits: Tensor, labels: Tensor, *, gamma: float = 2.0, weights: Tensor | None = None, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """sum over rows of w[y] (1 - p)^gamma (-log p), p = softmax(logits)[y], and the sum of w[y] (of rows, without weights).

    logits [b c], labels [b], weights [c]. gamma = 0 is cross entropy. Rows that are right already teach less, so a crowd of easy ones
    doesn't drown the few hard ones; it knows nothing of how frequent classes are. 1 - p keeps its digits at p = 1. For yes or no:
    `asymmetric` with positive = negative = gamma and margin 0. Source: arXiv:1708.02002.
    """
    checks.number("gamma", gamma, least=0)
    counts, chosen = _chosen(logits, labels, ignore)
    logits = _promoted(logits)
    norm = logits.logsumexp(-1)                                                        # [b]
    rest = logits.scatter(1, chosen[:, None], float("-inf")).logsumexp(-1) - norm      # log(1 - p)
    own = _at(logits, chosen) - norm
    return _summed(-(rest * gamma).exp() * own, counts, chosen, weights, logits.shape[-1])


def logit_adjusted(
    logits: Tensor, labels: Tensor, prior: Tensor, *, tau: float = 1.0, smoothing: float = 0.0, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits + tau log prior in training; predict from the raw logits: they then rank classes as if all were equally
    frequent, which is best for the mean of the recalls (balanced accuracy).

    logits [b c], labels [b], prior [c] > 0: frequencies or counts of the training rows, on any scale. tau = 0: cross entropy. The margin
    view: class y must win by tau log(prior of the other / prior of y). A model that is trained already: `post_hoc`. Source:
    arXiv:2007.07314.
    """
    return cross_entropy(_promoted(logits) + _shift(logits, prior, tau), labels, smoothing=smoothing, ignore=ignore)


def balanced_softmax(logits: Tensor, labels: Tensor, counts: Tensor, *, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over rows of -log(n_y exp(z_y) / sum over classes of n_j exp(z_j)): `logit_adjusted` with tau = 1, found independently
    (arXiv:2007.10740). counts [c]: training rows of each class."""
    return logit_adjusted(logits, labels, counts, tau=1.0, ignore=ignore)


def post_hoc(logits: Tensor, prior: Tensor, *, tau: float = 1.0) -> Tensor:
    """logits [b c] of a model that was trained with cross entropy -> logits - tau log prior, to predict from; prior [c] as in
    `logit_adjusted`. For two classes and tau = 1 the border moves from p = 1/2 to p = prior. Source: arXiv:2007.07314, section 4."""
    return _promoted(logits) - _shift(logits, prior, tau)


def ldam(
    logits: Tensor, labels: Tensor, counts: Tensor, *, margin: float = 0.5, scale: float = 30.0, weights: Tensor | None = None,
    ignore: int = -100,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of scale (z_j - [j = y] m_y), m_j proportional to counts_j^(-1/4), the largest `margin`; weighted as `focal`.

    logits [b c] in -1 … 1, cosines of features and class vectors (for plain logits scale = 1), labels [b], counts [c]. Rare classes must
    win by more. The paper turns `weights` (`effective_weights`) on late only, after the rate has dropped (DRW). Source: arXiv:1906.07413.
    """
    checks.number("margin", margin, least=0)
    checks.number("scale", scale)
    rows, chosen = _chosen(logits, labels, ignore)
    logits = _promoted(logits)
    frequency = _frequencies(counts, logits.shape[-1], "counts").to(logits.device).double()
    margins = (margin * (frequency / frequency.min()) ** -0.25).to(logits.dtype)       # [c]
    pushed = scale * logits.scatter_add(1, chosen[:, None], -margins[chosen][:, None])
    return _summed(-_at(pushed.log_softmax(-1), chosen), rows, chosen, weights, logits.shape[-1])


# Yes or no

def smooth_f1(scores: Tensor, labels: Tensor, *, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """n (1 - F), F = 2 sum(y p) / sum(y + p), p = sigmoid(scores), and n, the number of entries: the loss of a whole batch, 1 - F, that
    weighs as n entries do.

    scores, labels [n], 0 or 1; of [n c] each column has its F, and their mean is taken (macro). No sum over parts: batches must hold
    positives (one without teaches nothing). Gradient of -F: -(2 / sum(y + p)) sum of (y - F/2) p (1 - p) dz, whose p (1 - p) vanishes where
    the model is surest, also where it is wrong: begin with another loss, or use `f1_weighted`. Source: kexue.fm/archives/7708.
    """
    counts, targets, scores = _questions(scores, labels, ignore)
    total = counts.sum().to(scores.dtype)
    return total * (1 - _f1(scores.sigmoid(), targets, counts).mean()), total


def f1_weighted(scores: Tensor, labels: Tensor, *, f1: Tensor | None = None, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over entries of -[y (1 - F/2) log p + (1 - y) (F/2) log(1 - p)], and their number: `smooth_f1` with log p in the place of p in
    its gradient, so that it doesn't vanish. At F = 1 both sides weigh 1/2; while F is small nearly nothing but the positives counts.

    scores, labels [n] or [n c]. f1: [] or [c], an estimate over more than this batch, for instance a running mean; None: of this batch.
    Never differentiated. Source: kexue.fm/archives/7708.
    """
    counts, targets, scores = _questions(scores, labels, ignore)
    estimate = (_f1(scores.sigmoid(), targets, counts) if f1 is None else f1.to(scores)).detach()
    weight = targets * (1 - estimate) + estimate / 2                                   # y (1 - F/2) + (1 - y) F/2
    each = weight * binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return torch.where(counts, each, 0.0).sum(), counts.sum().to(scores.dtype)


def dice(scores: Tensor, labels: Tensor, *, alpha: float = 0.0, smoothing: float = 1.0, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over entries of 1 - (2 w y + s) / (w + y + s), w = (1 - p)^alpha p, p = sigmoid(scores), s = smoothing, and their number.

    scores, labels [n] or [n c]. F1 of each entry on its own, so it sums over batches; unlike `smooth_f1` it doesn't know how many positives
    there are. alpha: the paper's self-adjusting form at 1, but then w is largest at p = 1/2: a positive is pulled to 1/2 and no further,
    and a negative beyond it is pushed to 1, which is why 0 is the default. Source: arXiv:1911.02855, equation 11.
    """
    checks.number("alpha", alpha, least=0)
    checks.number("smoothing", smoothing)
    counts, targets, scores = _questions(scores, labels, ignore)
    share = scores.sigmoid() if not alpha else (logsigmoid(scores) + alpha * logsigmoid(-scores)).exp()
    each = 1 - (2 * share * targets + smoothing) / (share + targets + smoothing)
    return torch.where(counts, each, 0.0).sum(), counts.sum().to(scores.dtype)


def asymmetric(
    scores: Tensor, labels: Tensor, *, positive: float = 0.0, negative: float = 4.0, margin: float = 0.05, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """sum over entries of -[y (1 - p)^positive log p + (1 - y) q^negative log(1 - q)], q = max(p - margin, 0), p = sigmoid(scores), and
    their number: focal for many labels of which few hold, where easy negatives (p below the margin) don't count at all.

    scores, labels [n] or [n c], 0 or 1. positive = negative, margin = 0: focal; all 0: `classification.multi_label`. Against it
    `zlpr.zlpr`, which has nothing to choose. Source: arXiv:2009.14119.
    """
    for name, value in (("positive", positive), ("negative", negative)):
        checks.number(name, value, least=0)
    checks.number("margin", margin, least=0, below=1)
    counts, targets, scores = _questions(scores, labels, ignore)
    found, missed = logsigmoid(scores), logsigmoid(-scores)                            # log p, log(1 - p)
    excess = scores.sigmoid() - margin
    inside = excess > 0
    # Outside a number whose power and logarithm have gradients: they are thrown away, and must not be nan.
    rest = missed if not margin else torch.logaddexp(missed, torch.full_like(missed, math.log(margin)))
    against = torch.where(inside, torch.where(inside, excess, 0.5) ** negative * -rest, 0.0)
    each = targets * (positive * missed).exp() * -found + (1 - targets) * against
    return torch.where(counts, each, 0.0).sum(), counts.sum().to(scores.dtype)


def _chosen(logits: Tensor, labels: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Which rows count, and each row's class, 0 where it doesn't, [b] both."""
    counts = counted(logits, labels, ignore=ignore)
    return counts, labels.masked_fill(~counts, 0)


def _at(values: Tensor, chosen: Tensor) -> Tensor:
    """values [b c] at each row's class, [b]."""
    return values.gather(1, chosen[:, None]).squeeze(1)


def _summed(rows: Tensor, counts: Tensor, chosen: Tensor, weights: Tensor | None, classes: int) -> tuple[Tensor, Tensor]:
    """rows [b] -> what of them counts, weighted by its class, and the sum of these weights."""
    weight = counts.to(rows.dtype)
    if weights is not None:
        if weights.shape != (classes,):
            raise DataError(f"Weights of shape {list(weights.shape)} for {classes} classes.", fix="Give one a class.")
        weight = weight * weights.to(rows)[chosen]
    return (rows.masked_fill(~counts, 0.0) * weight).sum(), weight.sum()


def _shift(logits: Tensor, prior: Tensor, tau: float) -> Tensor:
    checks.number("tau", tau, least=0)
    frequency = _frequencies(prior, logits.shape[-1], "prior").to(logits.device).double()
    return (tau * (frequency / frequency.sum()).log()).to(torch.promote_types(logits.dtype, torch.float32))


def _frequencies(values: Tensor, classes: int, name: str) -> Tensor:
    if values.shape != (classes,):
        raise DataError(f"{name} has shape {list(values.shape)}, the logits {classes} classes.", fix="Give one number a class.")
    if values.device.type == "cpu" and not bool(((values > 0) & values.isfinite()).all()):
        at = int((~((values > 0) & values.isfinite())).nonzero()[0])
        fix = "Leave out a class without rows, or count it as a part of one."
        raise DataError(f"{name} is {values[at].item():g} for class {at}.", fix=fix)
    return values


def _questions(scores: Tensor, labels: Tensor, ignore: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries count, their targets, and the scores, fp32 at least."""
    if scores.shape != labels.shape:
        fix = "Give a score a label; of a softmax over two classes logits[:, 1] - logits[:, 0]."
        raise DataError(f"Labels of shape {list(labels.shape)} for scores {list(scores.shape)}.", fix=fix)
    scores, counts = _promoted(scores), labels != ignore
    return counts, torch.where(counts, labels, 0).to(scores.dtype), scores


def _f1(p: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """2 sum(y p) / sum(y + p) of each column, [] or [c]; 0 where there is nothing."""
    shares = torch.where(counts, p, 0.0)
    return 2 * (targets * shares).sum(0) / (targets + shares).sum(0).clamp_min(torch.finfo(p.dtype).tiny)


def _promoted(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
