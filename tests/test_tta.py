"""T-TA (arXiv:2004.08097): every token predicted from its two-sided context in one pass. What test_contracts.py holds beside this: layouts,
permutations, and that a hidden diagonal alone leaks.

fp64; "the same" means to the bit wherever a leak is the question.
"""

from __future__ import annotations

import pytest
import torch

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
VOCABULARY, LENGTH = 31, 11


def scorer(**changes):
    """A T-TA of odd sizes, its weights large enough for attention to be far from uniform."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 14, "layers": 3, "attention_heads": 2, "head_size": 6, "intermediate_size": 19,
             "max_positions": 23, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, "stream": "positions",
             "mask": {"name": "full", "exclude_self": True}, "heads": ("lm",)}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval().requires_grad_(False)


def text(length=LENGTH):
    return torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))[:length][None]


def changed(ids, place):
    other = ids.clone()
    other[0, place] = (ids[0, place] + 5) % VOCABULARY
    return other


def scored_kinds():
    """Every attention that can hide a token from itself."""
    kinds = []
    for name in switch.names("attention"):
        try:
            scorer(attention=name, layers=1)
        except ConfigError:
            continue
        kinds.append(name)
    return kinds


def assert_no_leak(model):
    """A change of token i changes no bit of the logits at i, and those everywhere else."""
    ids = text()
    once = model(ids).logits[0]
    for place in (0, 4, LENGTH - 1):
        change = (model(changed(ids, place)).logits[0] - once).abs().amax(-1)
        assert float(change[place]) == 0
        assert float(torch.cat((change[:place], change[place + 1 :])).min()) > 1e-6


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("norm_at", ["post", "pre"])
def test_a_token_changes_no_bit_of_its_own_logits_at_any_depth(layers, norm_at):
    assert_no_leak(scorer(layers=layers, norm_at=norm_at))


@pytest.mark.parametrize("attention", scored_kinds())
@pytest.mark.parametrize("changes", [{}, {"position": "rotary"}, {"residual_scores": True}, {"block": "gau", "intermediate_size": 18}],
                         ids=str)
def test_no_kind_of_attention_leaks(attention, changes):
    try:
        model = scorer(attention=attention, **changes)
    except ConfigError:
        return                                                       # refused: it has no scores to carry
    if attention == "squared_relu":                                  # some queries see nothing above 0: one change may reach few tokens
        ids = text()
        assert all(bool((model(ids).logits[0, i] == model(changed(ids, i)).logits[0, i]).all()) for i in range(LENGTH))
    else:
        assert_no_leak(model)


@pytest.mark.parametrize("layers", [2, 6])
def test_keys_and_values_of_the_stream_itself_would_leak(layers):
    """The planted fault: a hidden diagonal, but keys and values from the layer below."""
    model = scorer(layers=layers, stream="tokens")
    ids = text()
    assert float((model(ids).logits[0, 4] - model(changed(ids, 4)).logits[0, 4]).abs().max()) > 1e-3


def test_the_pseudo_log_likelihood_of_one_pass_is_that_of_a_pass_a_token():
    model, ids = scorer(), text()
    found = model(ids).logits[0].log_softmax(-1).gather(1, ids[0, :, None]).sum()
    expected = torch.zeros((), dtype=torch.float64)
    for place in range(LENGTH):
        others = ids.clone()
        others[0, place] = 0                                         # whatever stands there
        expected += model(others).logits[0, place].log_softmax(-1)[ids[0, place]]
    assert abs(float(found - expected)) < 1e-10
    likelihoods = {int(model(changed(ids, place)).logits[0].log_softmax(-1).gather(1, changed(ids, place)[0, :, None]).sum() * 1e6)
                   for place in range(LENGTH)}
    assert len(likelihoods) == LENGTH                                # no two texts score the same


# The original's error: masks that are added

def additive(q, k, v, mask):
    """What the original does: -10,000 where a key is hidden, then the softmax."""
    return (q @ k.mT / q.shape[-1] ** 0.5 + torch.where(mask, 0.0, -10_000.0)).softmax(-1) @ v


def test_an_added_mask_cancels_where_nothing_else_is_seen_and_ours_does_not():
    """joongbo/tta adds its masks: in a row that sees no other token, of one token or beside padding only, the softmax takes the same
    number off every score, and the token reads itself."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 7, dtype=torch.float64)
    alone = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    assert torch.equal(additive(q[:, :, :1], k[:, :, :1], v[:, :, :1], alone), v[:, :, :1])         # weight 1 on itself
    ids = text(5)
    padding = torch.tensor([[True, False, False, False, False]])
    model = scorer()
    for given in ({"ids": ids[:, :1]}, {"ids": ids, "padding": padding}):
        one = model(**given, attentions=True)
        other = model(**{**given, "ids": changed(given["ids"], 0)})
        assert torch.equal(one.logits[:, 0], other.logits[:, 0])
        assert all(float(weights[:, :, 0].abs().max()) == 0 for weights in one.attentions)


@pytest.mark.parametrize("attention", scored_kinds())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_lone_token_gets_the_same_vector_whatever_it_is(attention, dtype):
    model = scorer(attention=attention).to(dtype)
    logits = model(torch.arange(VOCABULARY)[:, None]).logits
    assert float((logits - logits[:1]).abs().max()) <= 100 * torch.finfo(dtype).eps * float(logits.abs().max())   # rows of one product


def test_it_learns_with_a_lone_token_in_the_batch():
    """A row that sees nothing gives gradients that are finite, and some that are not zero."""
    model = scorer().train().requires_grad_()
    ids = torch.randint(1, VOCABULARY, (3, 5))
    padding = torch.tensor([[True] * 5, [True] + [False] * 4, [True] * 3 + [False] * 2])
    logits = model(ids, padding=padding).logits
    torch.nn.functional.cross_entropy(logits[padding], ids[padding]).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients) and float(model.embedding.query.grad.abs().max()) > 0
