"""Vocabulary surgery: what stays gives the same logits, what comes is a mean, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.text.vocab import Vocab, compound, extend, keep
from fishpaw.weights import surgery
from fishpaw.weights.surgery import add_rows, keep_rows

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
    monkeypatch.setattr(surgery, "_OVER_VOCABULARY", tuple(name for name in surgery._OVER_VOCABULARY if name != lost))
    with pytest.raises(RuntimeError, match=lost):
        keep_rows(make("mlm untied"), [0, 1, 2])


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
