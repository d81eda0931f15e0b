"""Refusals name both switches, the reason and what to use instead; each row of the table can be met."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Attention, Position
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask
from fishpaw.model.refusals import REFUSALS, refuse_attention
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)


class Wide(Attention):
    honours = frozenset({"embed", "rotate", "bias", "score", "mix"})
    rules = frozenset({"window", "exclude_self"})
    has_scores = True


def lacking(what):
    """A kernel that lacks one thing, and a position, mask and switch that need it."""
    kernel, position, mask, residual = Wide(), Position(), Mask("full"), False
    if what in ("full", "causal", "unilm"):
        kernel.clocks, mask = kernel.clocks - {what}, Mask(what)
    elif what == "mix":
        kernel.has_scores, kernel.honours, position = False, kernel.honours - {what}, type("Needy", (Position,), {what: lambda *_: None})()
    elif what == "residual_scores":
        kernel.has_scores, residual = False, True
    elif what in ("window", "exclude_self"):
        kernel.rules = kernel.rules - {what}
        mask = Mask("causal", window=3) if what == "window" else Mask("causal", exclude_self=True)
    else:
        kind = type("Needy", (Position,), {what: lambda *_: None})
        kernel.honours, position = kernel.honours - {what}, kind()
    return kernel, position, mask, residual


LACKS = sorted(key for key in REFUSALS if " x " not in key)
PAIRS = sorted(set(REFUSALS) - set(LACKS))
SHAPE = {"vocab_size": 7, "hidden_size": 8, "layers": 2, "attention_heads": 2, "intermediate_size": 6}
INNER = ModelConfig(7, 8, 1, 2, 6)
MADE = {                                                             # a model that each pair refuses, and the names in the answer
    "block 'gau' x norm_at 'mixed'": ({"block": "gau", "norm_at": "mixed"}, ("'gau'", "'mixed'")),
    "block 'gau' x an encoder": ({"block": "gau", "encoder": INNER}, ("'gau'", "encoder")),
    "block 'gau' x activation {}": ({"block": "gau", "activation": "geglu"}, ("'gau'", "'geglu'")),
    "norm_at 'mixed' x an encoder": ({"norm_at": "mixed", "encoder": INNER}, ("'mixed'", "encoder")),
    "qk_norm x norm {}": ({"qk_norm": True, "norm": {"name": "conditional", "condition": 3}}, ("qk_norm", "'conditional'")),
    "distinct_layers x a list of attentions": ({"attention": ["softmax", "linear"], "distinct_layers": 1}, ("distinct_layers", "list")),
}


@pytest.mark.parametrize("what", LACKS)
def test_each_row_of_the_table_is_met_and_says_why(what):
    kernel, position, mask, residual = lacking(what)
    with pytest.raises(ConfigError) as caught:
        refuse_attention("narrow", kernel, position=("needy", position), mask=mask, residual_scores=residual)
    message = str(caught.value)
    other = {"residual_scores": "residual_scores", "window": "window", "exclude_self": "exclude_self"}.get(what, what)
    assert "'narrow'" in message and other in message and REFUSALS[what].reason in message and REFUSALS[what].instead in message
    refuse_attention("wide", Wide(), position=("needy", position), mask=mask, residual_scores=residual)      # nothing lacks there


@pytest.mark.parametrize("pair", PAIRS)
def test_each_pair_of_switches_is_refused_by_both_names_and_its_reason(pair):
    changes, names = MADE[pair]
    with pytest.raises(ConfigError) as caught:
        Transformer(ModelConfig(**{**SHAPE, **changes}))
    message = str(caught.value)
    assert all(name in message for name in names) and REFUSALS[pair].reason in message and REFUSALS[pair].instead in message


def test_advice_can_be_followed():
    """What is told to be used instead serves."""
    for changes, instead in (
        ({"block": "gau", "norm_at": "mixed"}, {"norm_at": "pre"}),
        ({"attention": "efficient", "mask": {"name": "full", "exclude_self": True}}, {"mask": "full"}),
    ):
        with pytest.raises(ConfigError) as caught:
            Transformer(ModelConfig(**{**SHAPE, **changes}))
        assert ("softmax" in caught.value.fix) == ("attention" in changes)
        Transformer(ModelConfig(**{**SHAPE, **changes, **instead}))
