"""The language-model loss: its formula, its zeros, its precision, and each token weighing the same however the batches are cut."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fishpaw.losses.generation import masked_cross_entropy

torch.set_num_threads(1)


def test_it_is_its_formula_over_the_tokens_that_count() -> None:
    logits, targets = torch.randn(11, 13, dtype=torch.float64) * 3, torch.randint(13, (11,))
    targets[[2, 7]] = -100
    by_hand = sum(math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(logits.tolist(), targets.tolist(), strict=True) if y >= 0)
    total, count = masked_cross_entropy(logits, targets)
    torch.testing.assert_close(total.item(), by_hand, atol=1e-12, rtol=0)
    assert count.item() == 9


@pytest.mark.parametrize("tokens", [0, 5])
def test_no_target_gives_zero_and_zero_gradients(tokens: int) -> None:
    logits = torch.randn(tokens, 7, requires_grad=True)
    total, count = masked_cross_entropy(logits, torch.full((tokens,), -100))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert logits.grad is not None and not logits.grad.any()


def test_the_softmax_is_at_least_fp32_and_fp64_stays() -> None:
    logits, targets = torch.randn(3, 21128).bfloat16(), torch.tensor([1, 2, 3])
    total, _ = masked_cross_entropy(logits, targets)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, masked_cross_entropy(logits.double(), targets)[0].float(), atol=1e-4, rtol=0)
    assert masked_cross_entropy(logits.double(), targets)[0].dtype == torch.float64
    planted = cross_entropy(logits, targets, reduction="sum").float()    # a softmax that stays in bf16
    assert abs(planted - total) > 1e-3


def test_sums_over_parts_are_the_whole_and_means_are_not() -> None:
    logits, targets = torch.randn(11, 13, dtype=torch.float64), torch.randint(13, (11,))
    targets[:3] = -100
    total, count = masked_cross_entropy(logits, targets)
    parts = [masked_cross_entropy(logits[at], targets[at]) for at in (slice(0, 4), slice(4, 11))]
    torch.testing.assert_close(sum(a for a, _ in parts) / sum(b for _, b in parts), total / count, atol=1e-12, rtol=0)
    planted = sum(a / b for a, b in parts) / 2
    assert abs(planted - total / count) > 1e-2
