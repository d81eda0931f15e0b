"""Efficient attention against its formula; and that it isn't causal, by mathematics and by refusal (arXiv:1812.01243)."""

from __future__ import annotations

import pytest
import torch

from fishpaw.attention import efficient
from fishpaw.attention.efficient import build
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Grid, Position, Rows, View
from fishpaw.errors import ConfigError
from fishpaw.model.refusals import REFUSALS
from fishpaw.model.transformer import Transformer
from fishpaw.positions.rotary import build as rotary

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=37, hidden_size=20, layers=2, attention_heads=2, head_size=10, intermediate_size=29, max_positions=43,
                     dropout=0.0, attention_dropout=0.0, init_std=0.6, attention="efficient", heads=("lm",))
B, H, N, D = 2, 3, 13, CONFIG.width


def around(lengths=(N, N), position=None):
    order = torch.arange(N).expand(len(lengths), N)
    keep = order < torch.tensor(lengths)[:, None]
    rows, grid, position = Rows(order, order, torch.zeros_like(order), keep), Grid(len(lengths), N), position or Position()
    return View(grid, grid, rows, rows, position, position.at(order, order, order, torch.float64))


def drawn(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, heads, N, D, generator=generator, dtype=torch.float64).to(dtype) for heads in shapes or (H, H, H)]


def shares(q, k):
    """softmax_d(q) softmax_n(k)^T of one head, [n n], by exponentials."""
    return (q.exp() / q.exp().sum(-1, keepdim=True)) @ (k.exp() / k.exp().sum(0)).T


def test_it_is_its_formula_on_what_is_kept():
    q, k, v = drawn()
    shown = build(CONFIG)(q, k, v, around((13, 8)), weights=True)
    found = build(CONFIG)(q, k, v, around((13, 8)))
    for row, length in enumerate((13, 8)):
        for head in range(H):
            expected = shares(q[row, head], k[row, head, :length])
            assert float((shown.weights[row, head, :, :length] - expected).abs().max()) < 1e-12
            assert float((found.out[row, head] - expected @ v[row, head, :length]).abs().max()) < 1e-12
            assert float((shown.out[row, head] - found.out[row, head]).abs().max()) < 1e-12


def test_rows_are_convex_combinations_and_a_lone_token_gets_its_own_value():
    q, k, v = drawn()
    weights = build(CONFIG)(q, k, v, around((13, 1)), weights=True).weights
    assert float(weights.min()) >= 0 and float((weights.sum(-1) - 1).abs().max()) < 1e-12
    assert float((build(CONFIG)(q, k, v, around((13, 1))).out[1] - v[1, :, :1]).abs().max()) < 1e-12


def test_the_linear_form_turned_is_the_quadratic_form():
    q, k, v = drawn()
    found = build(CONFIG)(q, k, v, around((13, 8), rotary(CONFIG))).out
    angles = torch.arange(N)[:, None] * 10_000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)

    def turn(x):
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(angles * 0 + 1, angles)[: x.shape[-2]]
        return torch.view_as_real(turned).flatten(-2)

    for row, length in enumerate((13, 8)):
        expected = turn(q[row].softmax(-1)) @ turn(k[row, :, :length].softmax(-2)).mT @ v[row, :, :length]
        assert float((found[row] - expected).abs().max()) < 1e-12
    assert float((found - build(CONFIG)(q, k, v, around((13, 8))).out).abs().max()) > 1e-3


def test_padding_is_not_read_and_a_row_of_padding_has_finite_gradients():
    q, k, v = (one.requires_grad_() for one in drawn())
    view = around((9, 0))
    out = build(CONFIG)(q, k, v, view).out
    noise = [torch.where(view.k.keep[:, None, :, None], one, 50.0).detach() for one in (k, v)]
    assert torch.equal(build(CONFIG)(q, *noise, view).out, out) and float(out[1].detach().abs().max()) == 0
    out.square().sum().backward()
    assert all(bool(one.grad.isfinite().all()) for one in (q, k, v))
    assert float(k.grad[:, :, 9:].abs().max()) == float(v.grad[:, :, 9:].abs().max()) == 0


def test_gradients_are_those_of_finite_differences():
    inputs = [one[:1, :1, :5, :3].clone().requires_grad_() for one in drawn()]
    order = torch.arange(5)[None]
    rows, grid = Rows(order, order, order * 0, order < 4), Grid(1, 5)
    view = View(grid, grid, rows, rows, Position())
    assert torch.autograd.gradcheck(lambda *given: build(CONFIG)(*given, view).out, inputs)


def test_fewer_key_heads_and_bf16():
    q, k, v = drawn(6, 2, 2)
    expected = build(CONFIG)(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), around()).out
    assert float((build(CONFIG)(q, k, v, around()).out - expected).abs().max()) < 1e-12
    half = [one.bfloat16() for one in (q, k, v)]
    exact, found = build(CONFIG)(*(one.double() for one in half), around()).out, build(CONFIG)(*half, around()).out
    assert found.dtype == torch.bfloat16 and float((found.double() - exact).abs().max()) < 2**-7 * float(exact.abs().max())


# Piece by piece

@pytest.mark.parametrize("piece", [1, 4, 12, 13])
def test_pieces_of_any_length_are_the_whole_with_their_gradients(piece, monkeypatch):
    found = []
    for weights in (False, True):                                    # with weights nothing is cut
        monkeypatch.setattr(efficient, "PIECE", piece)
        inputs = [one.requires_grad_() for one in drawn()]
        out = build(CONFIG)(*inputs, around((13, 8)), weights=weights).out
        with torch.inference_mode():
            assert torch.equal(build(CONFIG)(*inputs, around((13, 8)), weights=weights).out, out)
        found.append([out, *torch.autograd.grad((out * drawn(H)[0].cos()).sum(), inputs)])
    for one, other in zip(*found, strict=True):
        assert float((one - other).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("piece", [1, 4, 13])
def test_keys_of_any_size_overflow_nowhere(piece, monkeypatch):
    """Rising from token to token, so that each piece has another maximum; far beyond what fp32's exponential holds; the padding further."""
    monkeypatch.setattr(efficient, "PIECE", piece)
    q, k, v = drawn(dtype=torch.float32)
    k = k + torch.linspace(-400, 400, N)[:, None]
    assert not bool(k.exp().isfinite().all())                        # the planted fault: without the maximum
    k[1, :, 8:] = torch.finfo(torch.float32).max
    k.requires_grad_()
    out = build(CONFIG)(q, k, v, around((13, 8))).out
    for row, length in enumerate((13, 8)):
        expected = q[row].double().softmax(-1) @ k[row, :, :length].double().softmax(-2).mT @ v[row, :, :length].double()
        assert float((out[row] - expected).detach().abs().max()) < 1e-5
    out.sum().backward()
    assert bool(k.grad.isfinite().all())


# Not causal

def test_no_triangle_makes_it_causal():
    """Used in language models as published, its softmax over the positions reads the future: the exponential of a later key is in the
    denominator of every earlier one, so that shares of the kernel change with it where a triangle laid over them hides it."""
    q, k, v = drawn()
    other, view = k.clone(), around()
    other[:, :, -1] += 3
    kernel, seen = build(CONFIG), torch.ones(N, N, dtype=torch.bool).tril()
    before, after = (kernel(q, keys, v, view, weights=True).weights.masked_fill(~seen, 0) for keys in (k, other))
    assert float(((before - after) @ v)[:, :, :-1].abs().max()) > 1e-2
    assert float((before.sum(-1) - 1).abs()[:, :, :-1].min()) > 1e-3                 # nor do rows sum to 1 any more
    causal = View(view.grid, view.source, view.q, view.k, Position(), clock="causal", mask=seen[None, None])
    assert torch.equal(kernel(q, k, v, causal).out, kernel(q, k, v, view).out)       # the kernel reads no mask, so
    assert kernel.clocks == {"full"} and not kernel.reads_mask
    with pytest.raises(ConfigError, match="efficient"):                             # a model with one is refused
        Transformer(CONFIG.change({"position": "none", "mask": "causal"}))
    running = k.exp() / k.exp().cumsum(-2)                                           # a denominator of the past alone is another function
    assert float((running - k.softmax(-2))[:, :, -1].abs().max()) < 1e-12
    assert float((running - k.softmax(-2))[:, :, 0].abs().min()) > 1e-3


@pytest.mark.parametrize("mask", ["causal", "unilm", {"name": "full", "exclude_self": True}, {"name": "full", "window": 3}], ids=str)
def test_every_mask_but_full_is_refused_by_name(mask):
    with pytest.raises(ConfigError, match="efficient") as caught:
        Transformer(CONFIG.change({"position": "none", "mask": mask}))
    lack = mask if isinstance(mask, str) else next(rule for rule in mask if rule != "name")
    assert REFUSALS[lack].reason in str(caught.value)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_model_reads_packed_as_padded(position):
    torch.manual_seed(0)
    model = Transformer(CONFIG.change({"position": position})).double().eval().requires_grad_(False)
    texts = [torch.randint(37, (length,)) for length in (11, 3, 10, 1, 7)]
    packed = Batch.packed(texts)
    found = packed.unpack(model(packed).logits)
    cells = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    keep = torch.arange(11) < torch.tensor([11, 3, 10, 1, 7])[:, None]
    padded = model(cells, padding=keep).logits
    for row, one in enumerate(texts):
        assert float((found[row] - padded[row, : len(one)]).abs().max()) < 1e-10
        assert float((found[row] - model(one[None]).logits[0]).abs().max()) < 1e-10
