"""The tables are well formed: every one of our tensors has one place, no name of theirs has two, patterns hide nothing learned."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fishpaw import activations, switch
from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.weights.names import ACTIVATIONS, FAMILIES, TENSORFLOW_ENDINGS
from fishpaw.weights.translate import ignored, parts, spelled_rows

UNTIED = [name for name, family in FAMILIES.items() if any(ours == "tie_embeddings" for ours, _ in family.config.values())]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_of_ours_has_a_row(tiny, name, tied):
    if not tied and name not in UNTIED:
        pytest.skip("always tied")
    config = tiny(FAMILIES[name]).change({"tie_embeddings": tied})
    with torch.device("meta"):
        wanted = set(Transformer(config).state_dict())
    assert wanted <= spelled_rows(FAMILIES[name], config).keys()
    with pytest.raises(AssertionError):                            # the planted fault: a block fewer
        assert wanted <= dict(parts(FAMILIES[name], config.blocks - 1, config.encoder.blocks if config.encoder else 0)).keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_name_of_theirs_stands_twice(name):
    """But for the rows that hold the same tensors in another arrangement: keys and values apart from the queries."""
    family = FAMILIES[name]
    rows = [several for ours, several in parts(family, 2, 2) if ".attention.query." not in ours and ".attention.key_value." not in ours]
    counted = Counter(alias for several in rows for part in several for alias in part.names)
    assert max(counted.values()) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_patterns_hide_no_tensor_with_a_place_unless_it_is_tied(name):
    family = FAMILIES[name]
    hidden = {ours for ours, several in parts(family, 2, 2) if any(ignored(alias, family) for part in several for alias in part.names)}
    assert hidden <= {"heads.mlm.decoder.weight", "heads.mlm.bias", "heads.lm.decoder.weight"}
    assert family.sines is None or ignored(family.sines, family)


@pytest.mark.parametrize("name", FAMILIES)
def test_stars_only_where_layers_are_and_on_both_sides(name):
    family = FAMILIES[name]
    for ours, theirs in family.weights.items():
        assert ("*" in ours) == ours.removeprefix("encoder.").startswith("layers.*.")
        assert all(name.count("*") == ours.count("*") for piece in theirs.split(" + ") for name in piece.split("|"))
    assert len(set(family.tensorflow.values())) == len(family.tensorflow)
    backbone = [theirs.removeprefix("^") for ours, theirs in family.weights.items() if not ours.startswith("heads.")]
    assert all(theirs.startswith(family.prefix) for theirs in backbone)


@pytest.mark.parametrize("name", FAMILIES)
def test_configurations_name_fields_that_we_have(name):
    family = FAMILIES[name]
    fields = set(ModelConfig(23, 12, 3, 3, 17).to_dict())
    assert {ours.removeprefix("encoder.").partition(".")[0] for ours, _ in family.config.values()} | set(family.fixed) <= fields
    assert family.decoder is None or family.decoder not in family.config
    may_lack = ("embedding_size", "intermediate_size", "key_value_heads", "head_size", "layers")   # a decoder as deep as its encoder
    assert all(default is not None or ours in may_lack or "." in ours for ours, default in family.config.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_are_shown_by_tensors_that_have_a_place_and_have_a_class(name):
    family = FAMILIES[name]
    aliases = {alias for _, several in parts(family, 1, 1) for part in several for alias in part.names}
    known = switch.names("model.heads")
    assert all(head in known and shows in aliases for head, shows, _ in family.heads)
    assert all(held <= set(known) for held, _ in family.classes)
    assert family.classes[-1][0] == frozenset()                    # a class for no head at all comes last
    for i, (held, _) in enumerate(family.classes):
        assert not any(earlier <= held for earlier, _ in family.classes[:i])     # nor does an earlier one take its place


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_of_a_family_are_ours(name):
    family = FAMILIES[name]
    kinds = {activations.is_gated(ours) for ours in family.activations.values()}
    assert len(kinds) == 1 and all(callable(activations.get(ours)) for ours in family.activations.values())


def test_activations_are_ours_and_keep_their_function():
    x = torch.linspace(-3, 3, 101)
    for read, written in ACTIVATIONS.items():
        assert torch.equal(activations.get(read)(x), activations.get(written)(x))


def test_endings_turn_only_matrices_of_products():
    assert [ending for ending, ours in TENSORFLOW_ENDINGS.items() if ours.startswith("^")] == ["kernel"]
