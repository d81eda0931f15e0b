"""Perturbed masking: the naive double loop, how many copies are read, models whose impacts are known, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.interpret.perturbed_masking import METRICS, adjacent_impacts, cosine, impact_matrix, impacts, l2, refuse_unfit
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
MASK = 4
IDS = torch.tensor([1, 17, 5, 29, 30, 31, 11, 7, 2])
WORDS = [[1], [2], [3, 4, 5], [6], [7]]                               # one of three tokens; first and last token are added ones


def encoder(layers: int = 2, **changes: object) -> Transformer:
    torch.manual_seed(3)
    shape = {"heads": ("mlm",), "max_positions": 37, "init_std": 0.4, "dropout": 0.3, "attention_dropout": 0.3}
    return Transformer(ModelConfig(41, 14, layers, 2, 22, **{**shape, **changes}))


def naive(model: Transformer, words: list[list[int]], *, layer: int = -1, metric=l2) -> Tensor:
    """The definition, two forwards a pair, one text each."""
    def vector(masked: list[int], at: int) -> Tensor:
        ids = IDS.clone()
        for word in masked:
            for place in words[word]:
                ids[place] = MASK
        with torch.no_grad(), model.evaluating():
            return model(ids[None], all_hidden=True).all_hidden[layer][0, words[at]].mean(0)

    found = torch.zeros(len(words), len(words))
    for i in range(len(words)):
        for j in range(len(words)):
            if i != j:
                found[i, j] = metric(vector([i], i), vector([i, j], i))
    return found


def counted(model: Transformer) -> list[int]:
    """How many texts each forward reads, from now on."""
    rows: list[int] = []
    model.register_forward_pre_hook(lambda module, given: rows.append(given[0].shape[0]))
    return rows


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("layer", [-1, 0, 1, 2, -2])
def test_the_matrix_is_the_naive_double_loop(metric, layer):
    model = encoder()
    found = impact_matrix(model, IDS, WORDS, mask_id=MASK, layer=layer, metric=metric)
    # fp32: other batch sizes, other orders of summing; the square root of the cosine's rounding doesn't enter
    torch.testing.assert_close(found, naive(model, WORDS, layer=layer, metric=metric), atol=1e-5, rtol=0)
    assert found.diagonal().eq(0).all() and (found >= 0).all()
    assert layer == 0 or (found - found.T).abs().max() > 1e-3          # impacts have a direction: a transposed matrix is found


def test_the_order_of_i_and_j_in_the_copies_matters():
    model = encoder()
    found, wrong = impact_matrix(model, IDS, WORDS, mask_id=MASK), naive(model, WORDS).T
    assert not torch.allclose(found, wrong, atol=1e-3)                 # planted


@pytest.mark.parametrize("tokens", [1, 10, 30, 63, 4096])
def test_batches_change_nothing_and_copies_are_as_few_as_they_can_be(tokens):
    model = encoder()
    expected = impact_matrix(model, IDS, WORDS, mask_id=MASK)
    rows = counted(model)
    found = impact_matrix(model, IDS, WORDS, mask_id=MASK, tokens=tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert sum(rows) == 5 * 6 // 2 and max(rows) == min(15, max(1, tokens // len(IDS)))


@pytest.mark.parametrize("tokens", [1, 30, 4096])
def test_neighbours_alone_take_two_copies_a_word_less_one(tokens):
    model = encoder()
    whole = impact_matrix(model, IDS, WORDS, mask_id=MASK)
    rows = counted(model)
    found = adjacent_impacts(model, IDS, WORDS, mask_id=MASK, tokens=tokens)
    torch.testing.assert_close(found, torch.stack([whole.diagonal(1), whole.diagonal(-1)], 1), atol=1e-5, rtol=0)
    assert sum(rows) == 2 * 5 - 1


def test_any_pairs_may_be_asked_for():
    model = encoder()
    whole = impact_matrix(model, IDS, WORDS, mask_id=MASK)
    rows = counted(model)
    found = impacts(model, IDS, WORDS, [(4, 1), (1, 2)], mask_id=MASK, tokens=20)
    torch.testing.assert_close(found, torch.stack([torch.stack([whole[4, 1], whole[1, 4]]), torch.stack([whole[1, 2], whole[2, 1]])]),
                               atol=1e-5, rtol=0)  # fmt: skip
    assert sum(rows) == 3 + 2                                          # words 1, 2, 4, and the pairs
    assert impact_matrix(model, IDS, [[3]], mask_id=MASK).tolist() == [[0.0]] and sum(rows) == 5


def test_without_attention_nothing_has_an_impact():
    model = encoder()
    assert impact_matrix(model, IDS, WORDS, mask_id=MASK).max() > 0.1
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.output.weight.zero_()
    assert impact_matrix(model, IDS, WORDS, mask_id=MASK).max() < 1e-6     # fp32: the same sums, maybe of batches of other sizes
    assert impact_matrix(encoder(), IDS, WORDS, mask_id=MASK, layer=0).max() < 1e-6        # nor have the embeddings seen any other word


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_window_of_one_reaches_one_word_a_layer(layers):
    model = encoder(layers, mask={"name": "full", "window": 1})
    found = impact_matrix(model, IDS, words := [[at] for at in range(1, 8)], mask_id=MASK)
    distance = (torch.arange(7)[:, None] - torch.arange(7)).abs()
    assert found[distance > layers].max() < 1e-6                       # fp32: equal rows of one batch, maybe summed in another order
    assert found[(distance > 0) & (distance <= layers)].min() > 1e-4
    assert (impact_matrix(encoder(layers), IDS, words, mask_id=MASK)[distance > layers] > 1e-4).all()      # planted: no window


def test_metrics_are_distances():
    draw = torch.Generator().manual_seed(1)
    one, other = torch.randn(5, 7, generator=draw), torch.randn(5, 7, generator=draw)
    expected = [math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for x, y in zip(one.tolist(), other.tolist(), strict=True)]
    assert l2(one, other).tolist() == pytest.approx(expected, abs=1e-5)
    for metric in METRICS.values():
        assert metric(one, one).abs().max() < 1e-6
        torch.testing.assert_close(metric(one, other), metric(other, one))
    torch.testing.assert_close(cosine(3 * one, 0.1 * other), cosine(one, other), atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine(one, -2 * one), torch.full((5,), 2.0), atol=1e-6, rtol=0)


def test_what_the_model_was_is_what_it_is_afterwards():
    model = encoder().train()
    impact_matrix(model, IDS, WORDS, mask_id=MASK)
    assert model.training and all(parameter.grad is None for parameter in model.parameters()) and IDS[1] == 17
    half = impact_matrix(encoder().bfloat16(), IDS, WORDS, mask_id=MASK)
    assert half.dtype == torch.float32 and half.max() > 0
    assert impact_matrix(encoder().double(), IDS, WORDS, mask_id=MASK).dtype == torch.float64
    prepared = impact_matrix(encoder().prepare(), IDS, WORDS, mask_id=MASK)
    torch.testing.assert_close(prepared, impact_matrix(encoder(), IDS, WORDS, mask_id=MASK), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("words", "pairs", "options", "kind", "says"), [
    ([[1], [9]], [], {}, DataError, r"Unit 1 has the tokens \[9\]"), ([[1], []], [], {}, DataError, "Unit 1"),
    ([[1, 2], [2]], [], {}, DataError, "share a token"), ([[1], [2]], [(0, 0)], {}, DataError, r"pair of units is \[0, 0\]"),
    ([[1], [2]], [(0, 2)], {}, DataError, r"\[0, 2\]"), ([[1], [2]], [(0, 1)], {"layer": 3}, ConfigError, "layer is 3"),
    ([[1], [2]], [(0, 1)], {"layer": -4}, ConfigError, "from -3 to 2"), ([[1], [2]], [(0, 1)], {"tokens": 0}, ConfigError, "tokens is 0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(words, pairs, options, kind, says):
    with pytest.raises(kind, match=says):
        impacts(encoder(), IDS, words, pairs, mask_id=MASK, **options)


def test_impacts_that_are_no_numbers_are_an_error():
    model = encoder()
    with torch.no_grad():
        model.layers[0].attention.output.weight[0, 0] = math.nan
    with pytest.raises(FishpawError, match="not finite"):
        impact_matrix(model, IDS, WORDS, mask_id=MASK)


@pytest.mark.parametrize("changes", [{"heads": ()}, {"mask": "causal", "heads": ("lm",)}, {"mask": "unilm"},
                                     {"stream": "positions", "mask": {"name": "full", "exclude_self": True}}], ids=str)  # fmt: skip
def test_models_that_read_no_masks_are_refused(changes):
    refuse_unfit(encoder(), layer=2)
    with pytest.raises(ConfigError, match="needs a masked language model"):
        refuse_unfit(encoder(**changes), layer=-1)
    with pytest.raises(ConfigError, match="layer is True"):
        refuse_unfit(encoder(), layer=True)
