"""Refusals name both switches, the reason and what to use instead; each row of the table can be met."""

from __future__ import annotations

import pytest
import torch

from fishpaw.contracts import Attention, Position
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask
from fishpaw.model.refusals import REFUSALS, refuse_attention

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
    elif what == "wide mix":
        kernel.honours, position = kernel.honours - {"mix"}, type("Needy", (Position,), {"mix": lambda *_: None})()
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


@pytest.mark.parametrize("what", sorted(REFUSALS))
def test_each_row_of_the_table_is_met_and_says_why(what):
    kernel, position, mask, residual = lacking(what)
    with pytest.raises(ConfigError) as caught:
        refuse_attention("narrow", kernel, position=("needy", position), mask=mask, residual_scores=residual)
    message = str(caught.value)
    other = {"residual_scores": "residual_scores", "window": "window", "exclude_self": "exclude_self"}.get(what, what)
    assert "'narrow'" in message and other in message and REFUSALS[what].reason in message and REFUSALS[what].instead in message
    refuse_attention("wide", Wide(), position=("needy", position), mask=mask, residual_scores=residual)      # nothing lacks there
