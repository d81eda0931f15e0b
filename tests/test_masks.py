"""Masks against naive loops over pairs of tokens."""

from __future__ import annotations

import pytest
import torch

from fishpaw import masks
from fishpaw.contracts import Rows
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
KEEP = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()


def rows(mask, segments=SEGMENTS, keep=KEEP):
    order = (keep.cumsum(1) - 1).clamp_min(0)
    return Rows(order, order, mask.times(order, segments), keep)


def naive(clock, window, exclude_self):
    """Loops over rows, queries and keys, with the definition of each mask in words."""
    seen = torch.zeros(3, 7, 7, dtype=torch.bool)
    for b in range(3):
        tokens = [t for t in range(7) if KEEP[b, t]]
        for i, q in enumerate(tokens):
            for j, k in enumerate(tokens):
                before = j <= i
                both_source = SEGMENTS[b, q] == 0 and SEGMENTS[b, k] == 0
                allowed = {"full": True, "causal": before, "unilm": both_source or (before and SEGMENTS[b, q] == 1)}[clock]
                seen[b, q, k] = allowed and (window is None or abs(i - j) <= window) and not (exclude_self and i == j)
    return seen


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("window", [None, 0, 2])
@pytest.mark.parametrize("clock", ["full", "causal", "unilm"])
def test_masks_are_their_definition(clock, window, exclude_self):
    mask = getattr(masks, clock)(None, window=window, exclude_self=exclude_self)
    facts = rows(mask)
    found = mask.allowed(facts, facts).expand(3, 7, 7)
    for b in range(3):
        expected = naive(clock, window, exclude_self)[b][KEEP[b]]
        assert torch.equal(found[b][KEEP[b]], expected)
    assert mask.rules == (("window",) if window is not None else ()) + (("exclude_self",) if exclude_self else ())


def test_the_comparison_would_catch_a_mask_that_looks_one_token_ahead():
    mask = masks.causal(None)
    facts = rows(mask)
    late = Rows(facts.order, facts.position, facts.time + 1, facts.keep)
    assert not torch.equal(mask.allowed(late, facts)[0], naive("causal", None, False)[0])


def test_a_key_that_is_padding_is_seen_by_nobody():
    for name in ("full", "causal", "unilm"):
        mask = getattr(masks, name)(None)
        facts = rows(mask)
        assert not (mask.allowed(facts, facts).expand(3, 7, 7) & ~KEEP[:, None, :]).any()


def test_times_go_on_where_the_stored_tokens_end():
    last = torch.tensor([3, 5, 0])
    order = torch.tensor([[4, 5], [6, 7], [1, 2]])
    segments = torch.tensor([[1, 1], [0, 1], [0, 0]])
    assert masks.causal(None).times(order, segments, last).tolist() == order.tolist()
    assert masks.full(None).times(order, segments, last).tolist() == [[3, 3], [5, 5], [0, 0]]
    assert masks.unilm(None).times(order, segments, last).tolist() == [[4, 5], [5, 6], [0, 0]]
    assert masks.unilm(None).times(order, None, last).tolist() == [[3, 3], [5, 5], [0, 0]]
    assert masks.unilm(None).times(order, None).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("window", [-1, 1.5, "3", True])
def test_a_window_is_a_whole_number(window):
    with pytest.raises(ConfigError, match="window is"):
        masks.causal(None, window=window)


def test_other_fields_are_checked_too():
    with pytest.raises(ConfigError, match="clock is 'sideways'"):
        Mask("sideways")
    with pytest.raises(ConfigError, match="exclude_self is 'no'"):
        Mask("full", exclude_self="no")
