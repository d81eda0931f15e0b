"""A whole model: its outputs, its two attention paths, recomputation, gradients, precision, and its answers to mistakes."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.block import Block
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
KEEP = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1]])
UNSEEN = {"name": "full", "exclude_self": True}


def tiny(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 37, "hidden_size": 23, "layers": 3, "attention_heads": 3, "head_size": 10, "intermediate_size": 29,
             "max_positions": 43, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, "heads": ("mlm",)}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval()


def ids(*shape):
    return torch.randint(37, shape or (3, 7), generator=torch.Generator().manual_seed(1))


VARIANTS = [{}, {"norm_at": "pre", "position": "rotary", "mask": "causal"}, {"residual_scores": True, "mask": "unilm"},
            {"stream": "positions", "mask": UNSEEN}, {"key_value_heads": 1, "embedding_size": 9, "position": "sinusoidal"}]


# Outputs

@torch.no_grad()
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_outputs_have_their_shapes_and_explicit_attention_is_fused_attention(changes):
    model = tiny(**changes)
    plain = model(ids(), segments=SEGMENTS, padding=KEEP)
    shown = model(ids(), segments=SEGMENTS, padding=KEEP, attentions=True, all_hidden=True)
    assert plain.hidden.shape == (3, 7, 23) and plain.logits.shape == (3, 7, 37)
    assert (plain.pooled, plain.nsp, plain.classes, plain.all_hidden, plain.attentions, plain.cache) == (None,) * 6
    assert len(shown.all_hidden) == 4 and all(one.shape == (3, 7, 23) for one in shown.all_hidden)
    assert len(shown.attentions) == 3 and all(one.shape == (3, 3, 7, 7) for one in shown.attentions)
    assert torch.equal(shown.all_hidden[-1], shown.hidden)
    assert float((shown.logits - plain.logits)[KEEP].abs().max()) < 1e-10
    for weights in shown.attentions:
        sums = weights.sum(-1).transpose(1, 2)[KEEP]                 # [tokens h]
        assert float((sums - 1).abs().max()) < 1e-12 and float(weights.min()) >= 0
        assert float(weights.masked_select(~KEEP[:, None, None, :]).abs().max()) == 0


@torch.no_grad()
def test_a_packed_batch_answers_flat_with_a_map_a_group():
    model = tiny()
    batch = Batch.packed([one[keep] for one, keep in zip(ids(), KEEP, strict=True)])
    out = model(batch, attentions=True, all_hidden=True)
    assert out.hidden.shape == (15, 23) and out.logits.shape == (15, 37) and out.all_hidden[0].shape == (15, 23)
    assert [tuple(one.shape) for one in out.attentions[0]] == [(1, 3, 7, 7), (1, 3, 5, 5), (1, 3, 3, 3)]


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_logits_at_are_logits_there(packed):
    model = tiny()
    batch = Batch.packed([one[keep] for one, keep in zip(ids(), KEEP, strict=True)]) if packed else Batch.padded(ids(), keep=KEEP)
    every = model(batch).logits.reshape(-1, 37)
    chosen = torch.tensor([13, 2, 2, 0])
    assert float((model(batch, logits_at=chosen).logits - every[chosen]).abs().max()) < 1e-12
    last = model(batch, logits_at=batch.last()).logits
    assert float((last - torch.stack([one[-1] for one in batch.unpack(every)])).abs().max()) < 1e-12
    assert model(batch, logits_at=chosen[:0]).logits.shape == (0, 37)


@torch.no_grad()
def test_explicit_positions_and_vectors_take_the_place_of_the_usual_ones():
    model = tiny()
    usual = torch.arange(7).expand(3, 7)
    here = model(ids()).logits
    assert torch.equal(model(ids(), positions=usual).logits, here)
    assert float((model(ids(), positions=usual + 1).logits - here).abs().max()) > 1e-3
    assert torch.equal(model(torch.zeros_like(ids()), embedded=model.embedding.tokens(ids().flatten())).logits, here)


@torch.no_grad()
def test_what_stands_in_padding_changes_nothing():
    model = tiny()
    noise = torch.where(KEEP, ids(), (ids() + 7) % 37)
    assert torch.equal(model(noise, padding=KEEP).logits[KEEP], model(ids(), padding=KEEP).logits[KEEP])


@torch.no_grad()
@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
@pytest.mark.parametrize("attention", ["softmax", "linear"])
@pytest.mark.parametrize("segments", [[0, 0, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0]], ids=str)
def test_padding_between_tokens_changes_nothing(attention, mask, segments):
    model = tiny(attention=attention, mask=mask)
    tokens, kinds = ids(1, 5), torch.tensor([segments])
    expected = model(tokens, segments=kinds).logits
    places = torch.tensor([1, 2, 4, 7, 8])
    spread, marks = torch.full((1, 10), 3), torch.ones(1, 10, dtype=torch.long)                     # the padding says segment 1
    spread[:, places], marks[:, places] = tokens, kinds
    keep = torch.zeros(1, 10, dtype=torch.bool)
    keep[:, places] = True
    assert float((model(spread, segments=marks, padding=keep).logits[:, places] - expected).abs().max()) < 1e-11


@torch.no_grad()
def test_pre_norm_ends_with_a_norm():
    model = tiny(norm_at="pre")
    seen = []
    model.final_norm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    out = model(ids(), all_hidden=True)
    assert torch.equal(seen[0][1].view(3, 7, 23), out.hidden) and torch.equal(out.all_hidden[-1], out.hidden)


# Gradients

@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("mask", ["causal", "unilm", {"name": "causal", "window": 2}])
def test_no_gradient_flows_from_a_token_that_is_not_seen(mask, attentions):
    model = tiny(mask=mask)
    segments = SEGMENTS[:1]
    vectors = model.embedding.tokens(ids(1, 7).flatten()).detach().requires_grad_()
    logits = model(ids(1, 7), segments=segments, embedded=vectors, attentions=attentions).logits[0]
    time = segments[0].cumsum(0) if mask == "unilm" else torch.arange(7)
    for i in range(7):
        gradient, = torch.autograd.grad(logits[i].square().sum(), vectors, retain_graph=True)
        seen = gradient.abs().amax(-1) > 0
        reach = (i - torch.arange(7) <= 2 * 3) if isinstance(mask, dict) else torch.ones(7, dtype=torch.bool)     # 3 layers, window 2
        assert torch.equal(seen, (time <= time[i]) & reach)          # exactly 0 elsewhere, and not here


T5 = {"position": "buckets", "attention": {"name": "softmax", "scale": 1.0}, "norm": "rms", "norm_at": "pre", "embedding_norm": False}
RECOMPUTED = [
    *VARIANTS,
    {"encoder": tiny(heads=()).config, "mask": "causal"},
    {"position": "buckets"},
    T5,
    {**T5, "encoder": tiny(heads=(), **T5).config, "mask": "causal"},
]


@pytest.mark.parametrize("changes", RECOMPUTED, ids=lambda one: ",".join(one))
def test_recomputation_changes_no_gradient(changes):
    model = tiny(dropout=0.3, attention_dropout=0.2, **changes).train()
    read = {}
    if model.config.encoder:
        read = {"encoded": torch.randn(21, 23, dtype=torch.float64), "encoder_batch": Batch.padded(ids(), keep=KEEP)}
    calls = []
    for block in model.layers:
        block.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients(seed, recompute):
        model.recompute = recompute
        calls.clear()
        torch.manual_seed(seed)
        logits = model(Batch.padded(ids(), keep=KEEP, segments=SEGMENTS), **read).logits
        found = torch.autograd.grad(logits.square().mean(), list(model.parameters()), allow_unused=True)
        return len(calls), torch.cat([one.flatten() for one in found if one is not None])

    (kept, expected), (again, found) = gradients(5, False), gradients(5, True)
    assert kept == 3 and again == 6                                  # each layer ran a second time
    assert float((found - expected).abs().max()) < 1e-10
    assert float((gradients(6, True)[1] - expected).abs().max()) > 1e-3            # other dropout: the comparison could fail


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("changes", [{}, {"mask": UNSEEN, "stream": "positions"}, {"residual_scores": True}, {"norm": "rms"}], ids=str)
def test_gradients_are_finite_where_a_row_is_all_padding(changes, attentions):
    model = tiny(**changes).float()
    keep = KEEP.clone()
    keep[1] = False
    out = model(ids(), padding=keep, attentions=attentions)
    out.logits.sum().backward()
    assert bool(out.logits.isfinite().all())
    assert all(bool(one.grad.isfinite().all()) for one in model.parameters() if one.grad is not None)


# Precision

@torch.no_grad()
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_bf16_is_close_to_fp32_and_fp32_to_fp64(changes):
    model = tiny(**{**changes, "init_std": 0.2})
    given = {"segments": SEGMENTS, "padding": KEEP}
    exact = model(ids(), **given).logits[KEEP]
    single = model.float()(ids(), **given).logits[KEEP]
    half = model.bfloat16()(ids(), **given).logits[KEEP]
    scale = float(exact.std())
    assert float((single - exact).abs().max()) < 1e-4 * scale        # 3 layers of sums of 30 terms at 6e-8
    assert float((half - exact).abs().mean()) < 0.1 * scale          # 3 layers at 4e-3, amplified by softmax and norm
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_autocast_runs_forward_backward_and_cached(changes):
    model = tiny(**changes).float()
    with torch.autocast("cpu", torch.bfloat16):
        model(ids(), segments=SEGMENTS, padding=KEEP).logits.float().sum().backward()
        if model.mask.clock != "full":
            with torch.no_grad():
                out = model(ids(), segments=SEGMENTS, padding=KEEP, cache=model.new_cache())
                assert model(ids(3), cache=out.cache).logits.shape == (3, 1, 37)


# Heads and cache

@torch.no_grad()
def test_heads_are_kept_added_and_dropped():
    model = tiny(heads=("pooler", "mlm"))
    pooler, before = model.heads["pooler"], model(ids()).pooled
    model.set_heads(["pooler", {"name": "classifier", "labels": ["a", "b", "c"]}])
    out = model(ids())
    assert model.heads["pooler"] is pooler and torch.equal(out.pooled, before) and out.logits is None and out.classes.shape == (3, 3)
    assert model.config.heads == ("pooler", {"name": "classifier", "labels": ["a", "b", "c"]}) and not model.heads["classifier"].training
    model.set_heads([{"name": "pooler", "at": "last"}])
    assert model.heads["pooler"] is not pooler
    for wrong in (["nsp"], ["mlmm"], ["mlm", "lm"]):
        with pytest.raises(ConfigError, match="reads the pooler|Did you mean 'mlm'|so does another"):
            model.set_heads(wrong)
        assert list(model.heads) == ["pooler"] and model.config.heads == ({"name": "pooler", "at": "last"},)        # as it was


@torch.no_grad()
def test_a_cache_leaves_out_sequence_heads_and_training_appends_once():
    model = tiny(mask="causal", heads=("pooler", "nsp", "mlm")).train()
    model.recompute = True
    with torch.enable_grad():
        out = model(ids(), cache=model.new_cache())
        out.hidden.square().sum().backward()                         # recomputed here, were it not for the cache
    assert (out.pooled, out.nsp) == (None, None) and out.cache.length == 7
    assert [own.length for own, _ in out.cache.memories] == [7, 7, 7]


# Mistakes

@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"ids": torch.tensor([[37, 1]])}, DataError, "token ids go from 1 to 37, but the vocabulary has 37"),
        ({"ids": torch.tensor([[-1, 1]])}, DataError, "token ids go from -1 to 1"),
        ({"ids": torch.rand(2, 3)}, DataError, "float32.*whole numbers"),
        ({"ids": torch.ones(1, 44).long()}, DataError, "44 tokens, but the model has 43 positions.*Truncate"),
        ({"ids": torch.ones(3).long()}, ValueError, r"1 dimensions, shape \(3,\): give \[rows, length\]"),
        ({"ids": torch.ones(2, 0).long()}, ValueError, "ids is empty"),
        ({"segments": torch.ones(3, 6).long()}, ValueError, r"segments has shape \(3, 6\), ids \(3, 7\)"),
        ({"padding": torch.ones(7).bool()}, ValueError, r"padding has shape \(7,\)"),
        ({"positions": torch.ones(1, 7).long()}, ValueError, r"positions has shape \(1, 7\)"),
        ({"segments": torch.full((3, 7), 2)}, DataError, "segments go from 2 to 2, but the model has 2"),
        ({"positions": torch.full((3, 7), 43)}, DataError, "positions go from 43 to 43, but the model has 43. Give 0 to 42"),
        ({"positions": torch.full((3, 7), -1)}, DataError, "positions go from -1 to -1, but the model has 43"),
        ({"ids": [[1, 2]]}, ValueError, "ids is a list: give a tensor"),
        ({"padding": torch.zeros(3, 7)}, ValueError, "padding is torch.float32: give booleans"),
        ({"condition": torch.ones(3, 5)}, ConfigError, "reads a condition"),
        ({"embedded": torch.ones(3, 7, 23)}, ValueError, r"embedded has shape \(3, 7, 23\): give \(21, 23\)"),
        ({"encoded": torch.ones(21, 23)}, ValueError, "reads no encoder"),
    ],
)
def test_mistakes_are_answered_with_what_was_seen_and_what_is_allowed(given, kind, said):
    with pytest.raises(kind, match=said):
        tiny()(given.pop("ids") if "ids" in given else ids(), **given)


def test_facts_beside_a_batch_or_a_filled_cache_are_refused_and_not_ignored():
    model = tiny(mask="causal")
    with pytest.raises(ValueError, match="segments, padding beside a Batch"):
        model(Batch.padded(ids()), segments=SEGMENTS, padding=KEEP)
    cache = model(ids(), cache=model.new_cache()).cache
    with pytest.raises(ValueError, match="positions in a step of a filled cache"):
        model(ids(3), cache=cache, positions=ids(3))
    with pytest.raises(ValueError, match="cache reads a padded batch"):
        model(Batch.packed([ids(5), ids(4)]), cache=model.new_cache())
    with pytest.raises(ConfigError, match="'full' can't decode.*causal"):
        tiny().new_cache()


def test_a_decoder_says_what_it_needs_of_its_encoder():
    model = tiny(mask="causal", encoder=tiny(heads=()).config)
    assert all(isinstance(block, Block) and block.cross is not None for block in model.layers)
    batch, encoded = Batch.padded(ids(3, 5)), torch.randn(15, 23, dtype=torch.float64)
    for given, said in [
        ({}, "reads an encoder: give"),
        ({"encoded": encoded}, "reads an encoder: give"),
        ({"encoded": encoded.view(3, 5, 23), "encoder_batch": batch}, r"\(3, 5, 23\) for 15 tokens"),
        ({"encoded": encoded[:5], "encoder_batch": Batch.padded(ids(1, 5))}, "3 rows read 1"),
        ({"encoded": encoded[:5], "encoder_batch": Batch.packed([ids(5)])}, "not packed"),
    ]:
        with pytest.raises(ValueError, match=said):
            model(ids(), **given)
    cache = model(ids(), encoded=encoded, encoder_batch=batch, cache=model.new_cache()).cache
    with pytest.raises(ValueError, match="already holds"):
        model(ids(3), encoded=encoded, encoder_batch=batch, cache=cache)
    pair = model(ids(), encoded=encoded, encoder_batch=batch, attentions=True).attentions[0]
    assert [tuple(one.shape) for one in pair] == [(3, 3, 7, 7), (3, 3, 7, 5)]
