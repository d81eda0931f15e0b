"""Perturbed masking: how much the vector of a word changes when another word is masked, too (arXiv:2004.14786; kexue.fm/archives/7476).

f(i, j) = |H(x without i) at i - H(x without i and j) at i|, the impact of j on i: H is the model, "without" means masked. f(i, j) and
f(j, i) come from one copy of the text, the one with both masked, and every f(i, .) needs the copy with i alone masked: n (n + 1) / 2
copies for the matrix of n words. Of neighbours only, for segmentation, 2n - 1. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fishpaw import checks
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.model.transformer import Transformer

__all__ = ["METRICS", "Metric", "adjacent_impacts", "cosine", "impact_matrix", "impacts", "l2", "refuse_unfit"]

Metric = Callable[[Tensor, Tensor], Tensor]
"""Vectors [m d] and [m d] -> how far each is from the other, [m]."""


def l2(one: Tensor, other: Tensor) -> Tensor:
    """The length of the difference, [… d] -> […]."""
    length: Tensor = torch.linalg.vector_norm(one - other, dim=-1)
    return length


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """1 less the cosine of the angle, 0 to 2, [… d] -> […]; the same whatever the vectors' lengths."""
    return (1 - cosine_similarity(one, other, dim=-1)).clamp_min(0)


METRICS: Mapping[str, Metric] = {"l2": l2, "cosine": cosine}
"""Those that the program knows by name."""


def impact_matrix(
    model: Transformer, ids: Tensor, units: Sequence[Sequence[int]], *, mask_id: int, layer: int = -1, metric: Metric = l2,
    tokens: int = 4096,
) -> Tensor:  # fmt: skip
    """f(i, j) for all units of a text, [n n] on the CPU, 0 on the diagonal; by n (n + 1) / 2 masked copies (none for a single unit).
    Arguments and errors: those of `impacts`."""
    upper = torch.triu_indices(len(units), len(units), 1)                                          # [2 p], row after row
    found = impacts(model, ids, units, upper.T.tolist(), mask_id=mask_id, layer=layer, metric=metric, tokens=tokens)
    matrix = torch.zeros(len(units), len(units), dtype=found.dtype)
    matrix[upper[0], upper[1]], matrix[upper[1], upper[0]] = found[:, 0], found[:, 1]
    return matrix


def adjacent_impacts(
    model: Transformer, ids: Tensor, units: Sequence[Sequence[int]], *, mask_id: int, layer: int = -1, metric: Metric = l2,
    tokens: int = 4096,
) -> Tensor:  # fmt: skip
    """f(t, t + 1) and f(t + 1, t) of neighbours, [n - 1, 2] on the CPU; by 2n - 1 masked copies. As `impacts`."""
    pairs = [(at, at + 1) for at in range(len(units) - 1)]
    return impacts(model, ids, units, pairs, mask_id=mask_id, layer=layer, metric=metric, tokens=tokens)


@torch.inference_mode()
def impacts(
    model: Transformer, ids: Tensor, units: Sequence[Sequence[int]], pairs: Sequence[Sequence[int]], *, mask_id: int, layer: int = -1,
    metric: Metric = l2, tokens: int = 4096,
) -> Tensor:  # fmt: skip
    """f(i, j) and f(j, i) of each pair of units (i, j), [p 2] in fp32 at least, on the CPU.

    ids [t]: the text as the model reads it, with what the tokenizer adds. units: the places in ids of each unit; one of several tokens has
    them all masked, and its vector is their mean. layer: of the embeddings (0) and each layer, negative from the last; -1: what the
    model makes. metric: l2, cosine or another function. tokens: a batch; copies of one text need no padding. One copy a unit that
    stands in a pair, and one a pair. Errors: ConfigError for a layer that isn't there; DataError for units that are empty, outside
    the text or share a token, and for a pair of a unit and itself; FishpawError for impacts that are no numbers.
    """
    checks.whole("tokens", tokens, least=1)
    layers = model.config.layers
    checks.whole("layer", layer, least=-layers - 1, most=layers)
    covers = _covers(units, len(ids)).to(device := model.table.device)                             # [n t] bool
    for pair in pairs:
        if len({*pair}) != 2 or not all(0 <= one < len(units) for one in pair):
            raise DataError(f"A pair of units is {[*pair]}.", fix=f"Give two different ones of 0 to {len(units) - 1}.")
    if not len(pairs):
        return torch.empty(0, 2)
    alone = sorted({one for pair in pairs for one in pair})
    copies = torch.tensor([*((one, one) for one in alone), *((one, other) for one, other in pairs)], device=device)       # [m 2]
    at = torch.searchsorted(torch.tensor(alone, device=device), copies[len(alone) :].contiguous())                        # [p 2]
    text, none = ids.to(device), torch.empty(0, dtype=torch.long, device=device)
    last, known, found = layer in (-1, layers), list[Tensor](), list[Tensor]()
    with model.evaluating():
        for part in copies.split(max(1, tokens // len(ids))):
            one, other = covers[part[:, 0]], covers[part[:, 1]]                                    # [r t]
            output = model(Batch.padded(torch.where(one | other, mask_id, text)), logits_at=none, all_hidden=not last)
            hidden = output.hidden if last else output.all_hidden[layer]                           # [r t d]
            hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            left, right = _means(hidden, one), _means(hidden, other)                               # [r d]
            single = min(len(part), len(alone) - sum(map(len, known)))                             # copies with one unit masked come first
            known = [torch.cat([*known, left[:single]])]
            where, at = at.split([len(part) - single, len(at) - len(part) + single])
            found.append(torch.stack([metric(known[0][where[:, 0]], left[single:]), metric(known[0][where[:, 1]], right[single:])], 1))
    every = torch.cat(found).cpu()                                                                 # [p 2]
    if not bool(every.isfinite().all()):
        raise FishpawError("The model's vectors are not finite.", fix="Look for NaN in its weights, and compute in fp32.")
    return every


def refuse_unfit(model: Transformer, *, layer: int) -> None:
    """ConfigError for a model that hasn't learnt to read texts with masks (all but those with the head mlm that see both sides), and for a
    layer that it hasn't."""
    checks.whole("layer", layer, least=-model.config.layers - 1, most=model.config.layers)
    sees = model.encoder is None and model.mask.clock == "full" and model.config.stream == "tokens"
    if not sees or "mlm" not in model.heads:
        raise ConfigError("Perturbed masking needs a masked language model: the head mlm, a full mask and no encoder beside it.",
                          fix="Load a BERT or RoFormer as it is.")


def _covers(units: Sequence[Sequence[int]], length: int) -> Tensor:
    """Which tokens each unit is made of, [n t]."""
    covers = torch.zeros(len(units), length, dtype=torch.bool)
    for at, places in enumerate(units):
        if not places or not all(0 <= place < length for place in places):
            raise DataError(f"Unit {at} has the tokens {[*places][:20]}.", fix=f"Give one at least, of 0 to {length - 1}.")
        covers[at, list(places)] = True
    if bool((covers.sum(0) > 1).any()):
        raise DataError("Two units share a token.", fix="Give each token to one unit at most.")
    return covers


def _means(hidden: Tensor, covered: Tensor) -> Tensor:
    """The mean vector of the tokens that each row covers; hidden [r t d], covered [r t] -> [r d]."""
    weights = covered.to(hidden.dtype) / covered.sum(1, keepdim=True)                              # [r t]
    return torch.bmm(weights[:, None], hidden)[:, 0]
