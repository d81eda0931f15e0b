"""What tasks that train share: weights of a seed, digests that see every change, and heads that are no softmax."""

from __future__ import annotations

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.training import imprint, refuse_ending, seeded


def made(tiny, seed: int = 0, **changes: object) -> Transformer:
    with seeded(seed):
        return Transformer(tiny(**changes))


def test_a_seed_gives_the_weights_and_nothing_outside_is_drawn(tiny):
    state = torch.get_rng_state()
    assert imprint(made(tiny)) == imprint(made(tiny)) != imprint(made(tiny, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for wrong in (-1, True, 2**63, 1.0):
        with pytest.raises(ConfigError, match="seed is "), seeded(wrong):  # type: ignore[arg-type]
            pass


def test_a_digest_sees_each_number_of_a_vector_and_every_matrix(tiny):
    model = made(tiny, heads=("mlm",))
    before = imprint(model)
    for name, value in model.state_dict().items():
        place = (0,) * value.dim() if value.dim() > 1 else (len(value) - 1,)
        old = value[place].clone()
        value[place] += 1.0
        assert imprint(model) != before, name
        value[place] = old
    assert imprint(model) == before
    with torch.no_grad():
        model.table.mul_(1.001)                                      # as an update does: everywhere
    assert imprint(model) != before
    assert imprint(made(tiny).bfloat16()) != before


def test_an_ordinary_head_is_let_pass_and_one_with_an_ending_is_not(tiny):
    refuse_ending(made(tiny), "a loss")
    refuse_ending(made(tiny, heads=("lm",), mask="causal"), "a loss")
    ending = {"name": "self_terminating", "epsilon": 0.1, "end": 3}
    with pytest.raises(ConfigError, match=r"ending \(SelfTerminating\): a loss is of a softmax, which it doesn't decode by"):
        refuse_ending(made(tiny, heads=({"name": "lm", "ending": ending},), mask="causal"), "a loss")
