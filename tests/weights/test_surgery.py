"""Surgery: what stays gives the same outputs, what comes is a mean, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Position
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.text.vocab import Vocab, compound, extend, keep
from fishpaw.weights import surgery
from fishpaw.weights.load import inspect, load_model, tell
from fishpaw.weights.save import save
from fishpaw.weights.surgery import (
    add_rows,
    keep_layers,
    keep_rows,
    longer_positions,
    share_layers,
    unshare_layers,
    with_encoder,
)

VOCABULARY = 23
KINDS = {
    "mlm": {"heads": ("mlm",)},
    "mlm untied": {"heads": ("mlm",), "tie_embeddings": False},
    "lm": {"heads": ({"name": "lm", "bias": True},), "mask": "causal"},
    "lm untied": {"heads": ("lm",), "mask": "causal", "tie_embeddings": False},
    "factorised": {"heads": ("mlm", "pooler", "nsp"), "embedding_size": 5},
}


def make(kind: str) -> Transformer:
    torch.manual_seed(3)
    model = Transformer(ModelConfig(VOCABULARY, 21, 2, 3, 17, max_positions=13, **KINDS[kind])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model


def logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(ids).logits
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [[0, 2, 3, 5, 11, 19, 22], [19, 0, 7, 3], list(range(VOCABULARY))])
def test_logits_of_kept_tokens_are_unchanged(kind, ids):
    model = make(kind)
    smaller = keep_rows(model, ids)
    new = torch.randint(len(ids), (2, 7))
    assert smaller.config.vocab_size == len(ids) and smaller.config.pad_id == ids.index(0)
    expected = logits(model, torch.tensor(ids)[new])[..., ids]
    torch.testing.assert_close(logits(smaller, new), expected, atol=5e-6, rtol=0)          # another blocking of the same product


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [3, [[1], [2, 5], [4, 4, 6]]])
def test_logits_of_old_tokens_are_unchanged_and_new_ones_are_means(kind, rows):
    """Of logits, too: they are linear in the rows and biases. fp32, logits up to 20."""
    model = make(kind)
    larger = add_rows(model, rows)
    ids = torch.randint(VOCABULARY, (2, 7))
    before, after = logits(model, ids), logits(larger, ids)
    parts = [range(VOCABULARY)] * 3 if rows == 3 else rows
    assert larger.config.vocab_size == VOCABULARY + 3
    torch.testing.assert_close(after[..., :VOCABULARY], before, atol=2e-6, rtol=0)
    wanted = torch.stack([before[..., list(part)].mean(-1) for part in parts], -1)
    torch.testing.assert_close(after[..., VOCABULARY:], wanted, atol=1e-5, rtol=0)
    assert bool((after[..., VOCABULARY:] <= before.max(-1, keepdim=True).values + 1e-5).all())      # no new token ever wins


def test_keeping_undoes_adding():
    model = make("mlm")
    back = keep_rows(add_rows(model, 4), range(VOCABULARY))
    assert back.config == model.config
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_vocabularys_own_lists_fit():
    model, vocab = make("mlm"), Vocab(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"零一二三四五六七八九十百千万亿兆京垓"))
    shorter, kept = keep(vocab, "一二三")
    assert keep_rows(model, kept).config.vocab_size == len(shorter)
    longer, parts = compound(vocab, {"一百": ["一", "百"], "二千": ["二", "千"]})
    larger = add_rows(model, parts)
    assert larger.config.vocab_size == len(longer)
    table = model.embedding.tokens.weight
    torch.testing.assert_close(larger.embedding.tokens.weight[longer.id("一百")], (table[vocab.id("一")] + table[vocab.id("百")]) / 2)
    more = extend(vocab, ["鱼", "熊"])
    assert add_rows(model, len(more) - len(vocab)).config.vocab_size == len(more)


@pytest.mark.parametrize("lost", ["heads.mlm.bias", "heads.mlm.decoder.weight"])
def test_a_forgotten_tensor_is_found(monkeypatch, lost):
    """The planted fault: surgery that leaves one tensor over the vocabulary as it is."""
    rebuilt = surgery._rebuilt
    model = make("mlm untied")
    monkeypatch.setattr(surgery, "_rebuilt", lambda old, config, tensors: rebuilt(old, config, {**tensors, lost: old.state_dict()[lost]}))
    with pytest.raises(RuntimeError, match=lost):
        keep_rows(model, [0, 1, 2])


def test_biases_in_another_order_than_the_rows_are_found():
    model = make("mlm")
    smaller = keep_rows(model, [0, 5, 7])
    with torch.no_grad():
        smaller.heads["mlm"].bias.copy_(smaller.heads["mlm"].bias.flip(0))
    new = torch.tensor([[0, 1, 2]])
    assert (logits(smaller, new) - logits(model, torch.tensor([[0, 5, 7]]))[..., [0, 5, 7]]).abs().max() > 1e-2


def test_the_old_model_is_left_alone_and_everything_else_is_kept():
    model = make("mlm").to(torch.bfloat16).train()
    model.recompute = True
    model.embedding.segments.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for other in (keep_rows(model, range(5)), add_rows(model, 2)):
        assert other.training and other.recompute and not other.embedding.segments.weight.requires_grad
        assert other.embedding.tokens.weight.requires_grad and {value.dtype for value in other.parameters()} == {torch.bfloat16}
        with torch.no_grad():
            for value in other.parameters():
                value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_means_of_halves_are_summed_in_fp32():
    """2^11 + 1 is no number of fp16, and 2 * 60000 none either: a sum of halves would stop at the one and overflow at the other."""
    model = make("mlm").half()
    with torch.no_grad():
        model.embedding.tokens.weight[:2] = torch.tensor([[60000.0], [1.0]])
    larger = add_rows(model, [[0, 0, 0], [1] * 4099])
    assert larger.embedding.tokens.weight[-2].tolist() == [60000.0] * 21 and larger.embedding.tokens.weight[-1].tolist() == [1.0] * 21


class Steps(Position):
    def __init__(self, size: int, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(13.0)[:, None].expand(13, size) / 7, persistent=persistent)

    def embed(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        return x + self.table[pos]


@pytest.mark.parametrize("persistent", [False, True])
def test_buffers_come_along(persistent):
    torch.manual_seed(3)
    config = ModelConfig(VOCABULARY, 21, 2, 3, 17, max_positions=13, heads=("mlm",), position=lambda config: Steps(21, persistent))
    model = Transformer(config).eval()
    model.position.table = model.position.table * 2                # not what a fresh one would hold
    ids = torch.arange(7)[None]
    smaller = keep_rows(model, range(11))
    torch.testing.assert_close(logits(smaller, ids), logits(model, ids)[..., :11], atol=5e-6, rtol=0)
    torch.testing.assert_close(logits(add_rows(model, 2), ids)[..., :VOCABULARY], logits(model, ids), atol=5e-6, rtol=0)
    smaller.position.table.zero_()
    assert model.position.table.any()


def test_drawing_no_random_number():
    model = make("mlm")
    state = torch.get_rng_state()
    keep_rows(model, [0, 3])
    add_rows(model, 5)
    keep_layers(share_layers(longer_positions(model, 17, by="interpolation"), 1), [0])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("ids", "error", "said"), [
    ([], DataError, "no id"), ([0, 1, 1], DataError, "id 1 stands twice"), ([0, 23], DataError, "id 23 is none of the model's 23"),
    ([0, -1], DataError, "id -1"), ([0, True], DataError, "id True"), ([0, 1.0], DataError, "id 1.0"), ([1, 2], ConfigError, "pad_id 0"),
])  # fmt: skip
def test_ids_that_cannot_be_kept(ids, error, said):
    with pytest.raises(error, match=said):
        keep_rows(make("mlm"), ids)


@pytest.mark.parametrize(("rows", "said"), [
    (0, "0 rows"), (-3, "-3 rows"), (True, "True rows"), ([], "nothing"), ([[1], []], "nothing"), ([[23]], "id 23"), ([[-1]], "id -1"),
])  # fmt: skip
def test_rows_that_cannot_be_added(rows, said):
    with pytest.raises(DataError, match=said):
        add_rows(make("mlm"), rows)


class Counted(Position):
    """Buffers over the vocabulary: numbers, truths and a square."""

    def __init__(self, vocabulary: int, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("counts", torch.arange(vocabulary), persistent=persistent)
        self.register_buffer("allowed", torch.arange(vocabulary) % 2 == 0, persistent=persistent)
        self.register_buffer("pairs", torch.arange(3.0 * vocabulary**2).view(vocabulary, 3, vocabulary), persistent=persistent)


@pytest.mark.parametrize("persistent", [False, True])
def test_buffers_over_the_vocabulary_follow(persistent):
    own = ModelConfig(VOCABULARY, 21, 2, 3, 17, max_positions=VOCABULARY, position=lambda config: Counted(config.vocab_size, persistent))
    model = Transformer(own)
    model.position.counts[3] = 100                                   # not what a fresh one would hold
    smaller = keep_rows(model, [3, 0, 5])
    assert smaller.position.counts.tolist() == [100, 0, 5] and smaller.position.allowed.tolist() == [False, True, False]
    assert torch.equal(smaller.position.pairs, model.position.pairs[[3, 0, 5]][..., [3, 0, 5]])
    larger = add_rows(model, [[3, 4], [2]])
    assert larger.position.counts[-2:].tolist() == [52, 2] and larger.position.pairs.shape == (25, 3, 25)
    turned = keep_rows(model, [*range(1, VOCABULARY), 0])            # no shape changes, every row does
    assert turned.position.counts.tolist() == [*model.position.counts.tolist()[1:], 0]
    assert torch.equal(turned.table, model.table.roll(-1, 0))


def test_what_is_as_long_as_the_vocabulary_but_not_over_it_stays():
    model = Transformer(ModelConfig(VOCABULARY, 21, 2, 3, VOCABULARY, max_positions=VOCABULARY, segments=VOCABULARY))
    smaller = keep_rows(model, [0, 2])
    assert {len(value) for value in smaller.state_dict().values() if len(value) == 2} == {2} and len(smaller.table) == 2
    assert sum(len(value) == VOCABULARY for value in smaller.state_dict().values()) == sum(
        len(value) == VOCABULARY for value in model.state_dict().values()) - 1


# Encoder-decoders, and a discriminator

def seq2seq(**options):
    torch.manual_seed(5)
    pair = {"position": "buckets", "segments": 0, "norm": "rms", "norm_at": "pre", "embedding_norm": False}
    encoder = ModelConfig(options.pop("encoder_vocabulary", VOCABULARY), 21, 3, 3, 17, **pair)
    model = Transformer(ModelConfig(VOCABULARY, 21, 2, 3, 17, mask="causal", heads=("lm",), encoder=encoder, **pair, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model


def answer(model, ids, source):
    with torch.no_grad():
        return model(ids, encoder_batch=Batch.padded(source)).logits


@pytest.mark.parametrize("options", [{"shared_embedding": True}, {"shared_embedding": True, "tie_embeddings": False}, {}])
def test_the_encoders_vocabulary_follows(options):
    model, ids, kept = seq2seq(**options), torch.randint(5, (2, 7)), [19, 0, 7, 3, 11]
    source = torch.randint(5, (2, 5))
    smaller = keep_rows(model, kept)
    assert smaller.config.encoder.vocab_size == 5 and smaller.config.encoder.pad_id == smaller.config.pad_id == 1
    old = torch.tensor(kept)
    expected = answer(model, old[ids], old[source])[..., kept]
    torch.testing.assert_close(answer(smaller, ids, source), expected, atol=2e-5, rtol=0)
    larger = add_rows(model, [[1, 2]])
    wanted = answer(model, old[ids], old[source])
    torch.testing.assert_close(answer(larger, old[ids], old[source])[..., :VOCABULARY], wanted, atol=2e-5, rtol=0)
    assert (answer(smaller, ids, source.flip(1)) - expected).abs().max() > 1e-2      # the planted fault: the encoder is read at all


def test_an_encoder_with_another_vocabulary_keeps_it():
    model = seq2seq(encoder_vocabulary=29)
    smaller = keep_rows(model, [0, 4])
    assert smaller.config.encoder == model.config.encoder and len(smaller.encoder.table) == 29


@pytest.mark.parametrize("shared", [True, False])
def test_an_encoder_of_fewer_layers(shared):
    model, ids, source = seq2seq(shared_embedding=shared), torch.randint(VOCABULARY, (2, 7)), torch.randint(VOCABULARY, (2, 5))
    again = with_encoder(model, keep_layers(model.encoder, [0, 1, 2]))
    assert torch.equal(answer(again, ids, source), answer(model, ids, source)) and again.config == model.config
    shorter = with_encoder(model, keep_layers(model.encoder, [0, 2]))
    assert shorter.config.encoder.layers == 2 and (answer(shorter, ids, source) - answer(model, ids, source)).abs().max() > 1e-2
    deeper = keep_layers(shorter, [0, 1, 1])                         # the decoder's
    assert deeper.config.layers == 3 and deeper.config.encoder.layers == 2 and answer(deeper, ids, source).isfinite().all()
    with pytest.raises(ConfigError, match="one has a token table"):
        with_encoder(model, seq2seq(shared_embedding=not shared).encoder)
    with pytest.raises(ConfigError, match="another width"):
        with_encoder(model, make("mlm").__class__(ModelConfig(VOCABULARY, 14, 2, 7, 5)))
    with pytest.raises(ConfigError, match="no encoder"):
        with_encoder(make("mlm"), model.encoder)


def test_a_discriminator_has_no_row_a_token_but_its_table():
    torch.manual_seed(3)
    model = Transformer(ModelConfig(VOCABULARY, 21, 2, 3, 17, embedding_size=5, heads=("rtd",))).eval()
    kept, ids = [0, 3, 8, 22], torch.randint(4, (2, 7))
    with torch.no_grad():
        assert torch.equal(keep_rows(model, kept)(ids).replaced, model(torch.tensor(kept)[ids]).replaced)


# Layers

STACKS = {
    "post": {},
    "pre": {"norm_at": "pre", "embedding_norm": False},
    "mixed": {"norm_at": "mixed", "position": "rotary", "attention": "linear"},
    "gau": {"block": "gau", "intermediate_size": 18, "residual_scores": True},
    "turns": {"mask": ["full", {"name": "full", "window": 1}, "full"], "position": [{"name": "buckets", "buckets": 8}, "nezha"],
              "attention": ["softmax", "softmax_plus"]},
    "performer": {"attention": {"name": "performer", "features": 5}},
}  # fmt: skip


def stack(kind="post", layers=6, **options):
    config = ModelConfig(VOCABULARY, 18, layers, 3, 17, max_positions=11, heads=("mlm",))
    torch.manual_seed(3)
    model = Transformer(config.change({**STACKS[kind], **options})).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def by_hand(model, indices, ids):
    """The old model's own layers, run in another order."""
    layers, kinds = list(model.layers), list(model.kinds)
    blocks = [layers[index * len(layers) // len(kinds)] for index in indices]
    try:
        model.layers, model.kinds = torch.nn.ModuleList(blocks), [kinds[index] for index in indices]
        return logits(model, ids)
    finally:
        model.layers, model.kinds = torch.nn.ModuleList(layers), kinds


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5], [0, 2, 4], [1, 4, 5], [0, 1, 2, 2, 1, 3, 4, 5], [5]])
def test_layers_take_their_kind_along(kind, indices):
    model, ids = stack(kind), torch.randint(VOCABULARY, (2, 7))
    other = keep_layers(model, indices)
    assert other.config.layers == len(indices) == len(other.layers)
    assert torch.equal(logits(other, ids), by_hand(model, indices, ids))
    if indices == list(range(6)):
        assert other.config == model.config
    if indices == [0, 2, 4]:                                         # the planted fault: others would differ
        assert (logits(other, ids) - by_hand(model, [0, 2, 5], ids)).abs().max() > 1e-3


def test_repeated_layers_are_copies():
    deeper = keep_layers(stack(), [0, 1, 1])
    with torch.no_grad():
        deeper.layers[2].feed_forward.up.weight.zero_()
    assert deeper.layers[1].feed_forward.up.weight.any()


@pytest.mark.parametrize(("distinct_layers", "indices", "blocks"), [
    (1, [0, 3, 3], None), (1, [0, 1, 2, 3], 1), (1, [4], None), (2, [0, 3], None), (2, [0, 1, 4, 5], 2), (3, [1, 0, 5, 4], 2),
    (3, [0, 2, 4], None),
])  # fmt: skip
def test_layers_that_share_blocks(distinct_layers, indices, blocks):
    model, ids = stack(distinct_layers=distinct_layers), torch.randint(VOCABULARY, (2, 7))
    other = keep_layers(model, indices)
    torch.testing.assert_close(logits(other, ids), by_hand(model, indices, ids), atol=0, rtol=0)
    assert len(other.layers) == len({index * distinct_layers // 6 for index in indices})
    if blocks:
        assert other.config.distinct_layers == blocks


@pytest.mark.parametrize(("options", "indices", "error", "said"), [
    ({}, [], ConfigError, "layers is 0"), ({}, [0, 6], DataError, "layer 6 is none of the model's 6 layers"), ({}, [-1], DataError, "-1"),
    ({}, [True], DataError, "True"), ({"distinct_layers": 2}, [0, 1, 2, 3], ConfigError, "unevenly"),
    ({"distinct_layers": 2}, [0, 3, 1], ConfigError, "unevenly"),
    ({"position": ["learned", "rotary"]}, [1, 3], ConfigError, "position 'learned'"),
    ({"norm_at": "pre"}, [1, 2], ConfigError, "a norm less"), ({"norm_at": "pre"}, [0, 1, 0], ConfigError, "a norm less"),
    ({"norm_at": "pre", "distinct_layers": 1}, [0], ConfigError, "a norm less"),
])  # fmt: skip
def test_layers_that_cannot_be_kept(options, indices, error, said):
    with pytest.raises(error, match=said):
        keep_layers(stack(**options), indices)


def test_a_first_layer_without_norm_stays_first():
    model, ids = stack(norm_at="pre"), torch.randint(VOCABULARY, (2, 7))
    assert torch.equal(logits(keep_layers(model, [0, 3, 5]), ids), by_hand(model, [0, 3, 5], ids))


@pytest.mark.parametrize("kind", [kind for kind in STACKS if kind != "turns"])
@pytest.mark.parametrize("distinct_layers", [1, 2, 4])
def test_unshared_layers_give_the_same_bit_for_bit_and_so_does_sharing_again(kind, distinct_layers):
    model, ids = stack(kind, distinct_layers=distinct_layers), torch.randint(VOCABULARY, (2, 7))
    apart = unshare_layers(model)
    assert apart.config.distinct_layers is None and len(apart.layers) == 6
    assert torch.equal(logits(apart, ids), logits(model, ids))
    again = share_layers(apart, distinct_layers)
    assert again.config == model.config and torch.equal(logits(again, ids), logits(model, ids))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        apart.layers[1].attention_norm.weight.zero_()
    assert apart.layers[0].attention_norm.weight.any()


@pytest.mark.parametrize(("distinct_layers", "groups"), [(1, [range(6)]), (2, [range(3), range(3, 6)]), (4, [[0, 1], [2], [3, 4], [5]])])
def test_a_shared_block_is_the_mean_of_its_layers(distinct_layers, groups):
    model = stack()
    shared = share_layers(model, distinct_layers)
    for number, group in enumerate(groups):
        wanted = sum(model.layers[index].feed_forward.up.weight for index in group) / len(group)
        torch.testing.assert_close(shared.layers[number].feed_forward.up.weight, wanted, atol=1e-14, rtol=0)
    model.layers[0].feed_forward.up.weight.requires_grad_(False)
    assert shared.layers[0].feed_forward.up.weight.requires_grad


def test_what_a_model_cannot_share():
    for number in (0, 7, True):
        with pytest.raises(ConfigError, match="distinct_layers"):
            share_layers(stack(), number)
    with pytest.raises(ConfigError, match="in turn"):
        share_layers(stack("turns"), 2)
    with pytest.raises(ConfigError, match="a norm less"):
        share_layers(stack(norm_at="pre"), 1)
    with pytest.raises(ConfigError, match="a norm less"):
        unshare_layers(stack(norm_at="pre", distinct_layers=1))


def test_frozen_layers_stay_frozen_wherever_they_go():
    model = stack()
    model.layers[4].requires_grad_(False)
    with torch.no_grad():                                            # as at inference
        other = keep_layers(model, [4, 1])
    assert not any(value.requires_grad for value in other.layers[0].parameters())
    assert all(value.requires_grad for value in other.layers[1].parameters())
    assert not share_layers(keep_layers(model, [4, 4]), 1).layers[0].feed_forward.up.weight.requires_grad


# Saved and loaded

OPERATIONS = {
    "keep_rows": lambda model: keep_rows(model, [0, 5, 7, 2]),
    "add_rows": lambda model: add_rows(model, [[1, 2]]),
    "hierarchical": lambda model: longer_positions(model, 31),
    "interpolation": lambda model: longer_positions(model, 31, by="interpolation"),
    "keep_layers": lambda model: keep_layers(model, [0, 2, 2, 3]),
    "share_layers": lambda model: share_layers(model, 2),
    "unshare_layers": lambda model: unshare_layers(share_layers(model, 1)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_what_surgery_made_is_saved_and_loaded(tmp_path, operation, family):
    heads = ("pooler", "nsp", "mlm") if family == "bert" else ("pooler", "mlm")
    shape = {"distinct_layers": 1, "embedding_size": 5, "activation": "gelu_tanh"} if family == "albert" else {}
    model = OPERATIONS[operation](stack(family=family, heads=heads, **shape).float())
    save(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    ids = torch.randint(4, (2, 11))
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_a_loaded_bert_gets_conditional_norms(tmp_path, caplog):
    """Its own weight and bias fill them; the new matrices start at zero, so that no condition changes anything."""
    model = stack(norm={"name": "layer", "eps": 1e-5}).float()
    save(model, tmp_path / "model")
    norm = {"name": "conditional", "condition": 5, "eps": 1e-5}
    told, report = inspect(tmp_path / "model", changes={"norm": norm})
    assert report.new and all(name.endswith((".scale.weight", ".shift.weight")) for name in report.new)
    assert len(report.new) == 2 * (1 + 2 * 6 + 1) and not report.unused
    caplog.clear()
    tell(report)
    assert "28 new tensors start at zero: " in caplog.text and "random" not in caplog.text
    ids, condition = torch.randint(VOCABULARY, (2, 7)), torch.randn(2, 5)
    found = told(ids, condition=condition).logits
    torch.testing.assert_close(found, logits(model, ids), atol=2e-5, rtol=0)
    found.square().sum().backward()
    gradients = {name: value.grad for name, value in told.named_parameters() if name in report.new}
    assert all(bool(value.isfinite().all()) and bool(value.any()) for value in gradients.values())
    with torch.no_grad():
        for name, value in told.named_parameters():
            if name in report.new:
                value.normal_()
        changed = told(ids, condition=condition).logits
        assert (changed - told(ids, condition=condition.flip(0)).logits).abs().max() > 1e-2
        save(told, tmp_path / "told")
        assert torch.equal(load_model(tmp_path / "told")(ids, condition=condition).logits, changed)


def test_tokens_that_a_head_names_get_their_new_ids():
    ending = {"name": "self_terminating", "epsilon": 1e-3, "end": 11}
    torch.manual_seed(3)
    model = Transformer(ModelConfig(VOCABULARY, 21, 2, 3, 17, mask="causal", heads=({"name": "lm", "start": 7, "ending": ending},)))
    (head,) = keep_rows(model, [7, 0, 3, 11]).config.heads
    assert head == {"name": "lm", "start": 0, "ending": {**ending, "end": 3}}
    with pytest.raises(ConfigError, match="leave out token 11, which the head 'lm' names"):
        keep_rows(model, [7, 0, 3])
