"""Which switches can't stand together: one table, each pair with its mathematical reason and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fishpaw.contracts import Attention, Position
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask

__all__ = ["REFUSALS", "Refusal", "refuse_attention", "refused"]


class Refusal(NamedTuple):
    """Why two switches can't stand together, and what to use instead."""

    reason: str
    instead: str


_SCORES = "its sums are taken before any query meets a key, so there is never a matrix of scores"

# What an attention may lack, or both switches -> why they are refused.
REFUSALS: Mapping[str, Refusal] = {
    "embed": Refusal("it has no place for embeddings of positions", "another position"),
    "rotate": Refusal("it has no place for turned queries and keys", "another position"),
    "bias": Refusal(f"{_SCORES} that a bias could be added to", "position 'rotary' or 'learned'"),
    "score": Refusal(f"{_SCORES} that a position could change", "position 'rotary' or 'learned'"),
    "mix": Refusal(f"{_SCORES} whose weights a position could mix", "position 'rotary' or 'learned'"),
    "residual_scores": Refusal(f"{_SCORES} to carry to the next layer", "residual_scores=False"),
    "window": Refusal("a sum over all keys can't forget those that leave a window", "a mask without window"),
    "exclude_self": Refusal(
        "a normalisation over all positions is the same for every query, so none can leave out itself", "a mask without exclude_self"
    ),
    "full": Refusal("what it has summed can't hold later keys", "mask 'causal'"),
    "causal": Refusal("a normalisation over all positions reads the future", "mask 'full', or attention 'linear'"),
    "unilm": Refusal("a normalisation over all positions reads the target's future", "mask 'full', or attention 'linear'"),
    "block 'gau' x norm_at 'mixed'": Refusal("a gated attention unit has one norm, and mixed are two", "norm_at 'pre' or 'post'"),
    "block 'gau' x an encoder": Refusal(
        "a unit is attention and feed-forward at once, with no place between them for cross-attention", "block 'block' in the decoder"
    ),
    "block 'gau' x activation {}": Refusal("a unit has a gate of its own", "activation 'swish', or another without a gate"),
    "norm_at 'mixed' x an encoder": Refusal("cross-attention has no place beside its two norms", "norm_at 'pre' or 'post'"),
    "qk_norm x norm {}": Refusal("the queries and keys of a head bring no condition for it", "qk_norm=False, or another norm"),
    "distinct_layers x a list of attentions": Refusal(
        "layers that share weights share their attention, and can't take several in turn", "one attention, or leave out distinct_layers"
    ),
}


def refused(pair: str, found: object = "") -> ConfigError:
    """The error for two switches, "one x other" in the table; found: what stands for {} there."""
    refusal, (one, other) = REFUSALS[pair], pair.split(" x ")
    return ConfigError(f"{one} can't stand beside {other.format(found)}: {refusal.reason}.", fix=f"Use {refusal.instead}.")


def refuse_attention(name: str, kernel: Attention, *, position: tuple[str, Position], mask: Mask, residual_scores: bool) -> None:
    """ConfigError where the attention `name` can't serve a layer's position (name and part), its mask, or residual scores."""
    for hook in sorted(position[1].hooks() - kernel.honours):
        raise _error(name, f"position {position[0]!r}", f"its hook {hook!r}", hook)
    if mask.clock not in kernel.clocks:
        raise _error(name, f"the mask {mask.clock!r}", "its clock", mask.clock)
    for rule in mask.rules:
        if rule not in kernel.rules:
            raise _error(name, f"the mask {mask.clock!r}", f"its rule {rule!r}", rule)
    if residual_scores and not kernel.has_scores:
        raise _error(name, "residual_scores", "the scores", "residual_scores")


def _error(name: str, other: str, part: str, lack: str) -> ConfigError:
    refusal = REFUSALS[lack]
    what = f"attention {name!r} can't take {other} ({part}): {refusal.reason}."
    return ConfigError(what, fix=f"Use {refusal.instead}, or attention 'softmax'.")
