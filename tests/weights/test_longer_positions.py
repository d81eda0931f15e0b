"""Longer tables of learned positions: short texts as they were, or a table drawn between its corners."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.surgery import longer_positions

VOCABULARY = 23


def logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(ids).logits
    assert found is not None
    return found


def positioned(rows=7, **options):
    torch.manual_seed(3)
    options = {"max_positions": rows, "heads": ("mlm",), **options}
    model = Transformer(ModelConfig(VOCABULARY, 21, 2, 3, 17, **options)).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model


@pytest.mark.parametrize("position", ["learned", {"name": "learned", "offset": 2}])
def test_hierarchical_positions_leave_short_texts_as_they_are(position):
    model = positioned(rows=9, position=position)
    rows, ids = model.longest, torch.randint(VOCABULARY, (2, 31))
    longer = longer_positions(model, 31, by={"name": "hierarchical", "alpha": 0.3})
    assert longer.longest == rows**2 and longer.config.max_positions == 9
    torch.testing.assert_close(logits(longer, ids[:, :rows]), logits(model, ids[:, :rows]), atol=1e-12, rtol=0)
    assert logits(longer, ids).shape == (2, 31, VOCABULARY)
    assert logits(longer, ids).equal(logits(load_of(model, position={**as_dict(position), "name": "hierarchical", "alpha": 0.3}), ids))
    other = longer_positions(model, 31)                              # alpha 0.4
    assert (logits(other, ids) - logits(longer, ids)).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="serve"):
        longer_positions(model, rows**2 + 1)


def as_dict(spec):
    return {"name": spec} if isinstance(spec, str) else spec


def load_of(model, **changes):
    other = Transformer(model.config.change(changes)).double().eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("length", [8, 13, 17])
def test_an_interpolated_table_is_drawn_between_its_corners(length, offset):
    """Against a naive loop; 13 - 1 is twice 7 - 1, so that every second row is an old one, bit for bit."""
    model = positioned(rows=7 + offset, position={"name": "learned", "offset": offset})
    old = model.position.table.weight
    longer = longer_positions(model, length, by="interpolation")
    new = longer.position.table.weight
    assert longer.longest == length and longer.config.max_positions == length + offset == len(new)
    assert torch.equal(new[:offset], old[:offset]) and torch.equal(new[offset], old[offset]) and torch.equal(new[-1], old[-1])
    for row in range(length):
        place = row * 6 / (length - 1)
        low = int(place)
        high = min(low + 1, 6)
        wanted = old[offset + low] * (1 - (place - low)) + old[offset + high] * (place - low)
        torch.testing.assert_close(new[offset + row], wanted, atol=1e-14, rtol=0)
    if length == 13:
        assert torch.equal(new[offset::2], old[offset:])
    pulled = torch.nn.functional.interpolate(old[offset:].T[None], size=length, mode="linear", align_corners=False)[0].T
    assert (pulled - new[offset:]).abs().max() > 1e-2                # the planted fault: corners that aren't aligned
    assert new.requires_grad and logits(longer, torch.randint(VOCABULARY, (2, length))).isfinite().all()


def test_interpolation_in_half_precision_rounds_once():
    model = positioned().to(torch.bfloat16)
    exact = longer_positions(model.double(), 17, by="interpolation").position.table.weight
    half = longer_positions(model.to(torch.bfloat16), 17, by="interpolation").position.table.weight
    assert half.dtype == torch.bfloat16 and torch.equal(half, exact.to(torch.bfloat16))


@pytest.mark.parametrize(("options", "length", "by", "said"), [
    ({}, 7, "hierarchical", "has 7 positions"), ({}, True, "interpolation", "has 7"), ({}, 8.0, "interpolation", "8.0"),
    ({}, 9, "stretch", "stretch"), ({}, 9, {"name": "interpolation", "alpha": 0.3}, "interpolation"),
    ({}, 9, {"name": "hierarchical", "alpha": 0.5}, "alpha is 0.5"), ({}, 9, {"name": "hierarchical", "beta": 1}, "beta"),
    ({"position": "none"}, 9, "interpolation", "position is none"),
    ({"position": ["learned", "buckets"]}, 9, "hierarchical", "learned and buckets"),
    ({"position": "hierarchical"}, 99, "hierarchical", "position is hierarchical"),
])  # fmt: skip
def test_positions_that_cannot_be_longer(options, length, by, said):
    with pytest.raises(ConfigError, match=said):
        longer_positions(positioned(**options), length, by=by)
