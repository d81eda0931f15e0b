"""fill: what the model itself says at each [MASK], where it stands, and who can't be asked."""

from __future__ import annotations

import pytest
import torch

from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.fill import fill
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.load import load


@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_candidates_are_the_softmax_of_the_model_at_each_mask(pretrained, family):
    model, tokenizer = load(pretrained(family))
    text = "今天[MASK]很好，it's [MASK]！"
    blanks = fill(model, tokenizer, text, top=7)
    encoding = tokenizer.encode(text)
    with torch.no_grad():
        shares = model(torch.tensor([encoding.ids])).logits[0].softmax(-1)
    places = [at for at, token in enumerate(encoding.tokens) if token == "[MASK]"]
    assert [text[blank.start:].startswith("[MASK]") for blank in blanks] == [True, True]
    for blank, place, other in zip(blanks, places, places[::-1], strict=True):
        values, tokens = shares[place].topk(7)
        assert [token for token, _ in blank.candidates] == [tokenizer.vocab.tokens[at] for at in tokens]
        assert [share for _, share in blank.candidates] == pytest.approx(values.tolist(), abs=1e-6)
        assert [share for _, share in blank.candidates] != pytest.approx(shares[other].topk(7).values.tolist(), abs=1e-6)    # planted


def test_all_candidates_sum_to_one_and_rows_beyond_the_vocabulary_are_never_named(pretrained):
    model, tokenizer = load(pretrained("bert"))
    (blank,) = fill(model, tokenizer, "[MASK]", top=10**6)
    assert len(blank.candidates) == tokenizer.size and sum(share for _, share in blank.candidates) == pytest.approx(1)
    shorter = WordPiece(Vocab(tokenizer.vocab.tokens[:-9]))
    (blank,) = fill(model, shorter, "[MASK]", top=10**6)
    assert len(blank.candidates) == shorter.size


def test_a_mask_of_another_name_is_found_and_named_where_it_stands(pipeline, tiny):
    tokenizer = pipeline("<s> $A </s>")
    model = Transformer(tiny(tokenizer.size, heads=("mlm",), mask="full")).eval()
    (first, second) = fill(model, tokenizer, "今 <mask>好<mask>", top=3)
    assert (first.start, second.start) == (2, 9) and all(token in tokenizer.tokens for token, _ in first.candidates)
    ids = torch.tensor([tokenizer.encode("今<mask>好<mask>").ids])
    assert (ids == tokenizer.mask_id).sum() == 2
    with pytest.raises(DataError, match="The text has no <mask>. Write <mask>"):
        fill(model, tokenizer, "今[MASK]")


def test_no_dropout_falls_on_an_answer_and_nothing_is_left_behind(pretrained):
    model, tokenizer = load(pretrained("bert"), dropout=0.5)
    answer = fill(model, tokenizer, "[MASK]好")
    model.train()
    model.embedding.eval()
    modes = [module.training for module in model.modules()]
    assert fill(model, tokenizer, "[MASK]好") == answer
    assert [module.training for module in model.modules()] == modes and len({*modes}) == 2
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("text", "top", "kind", "says"),
    [
        ("今天", 5, DataError, r"no \[MASK\]"),
        ("", 5, DataError, r"no \[MASK\]"),
        ("[mask] [MASK", 5, DataError, r"no \[MASK\]"),
        ("[MASK]" * 40, 5, DataError, "42 tokens, but the model has 31 positions"),
        ("[MASK]", 0, ConfigError, "top is 0"),
        ("[MASK]", 1.5, ConfigError, "top is 1.5"),
        ("[MASK]", True, ConfigError, "top is True"),
    ],
)
def test_what_cannot_be_filled_is_refused(pretrained, text, top, kind, says):
    with pytest.raises(kind, match=says):
        fill(*load(pretrained("bert")), text, top=top)


def test_models_that_look_back_only_or_know_no_mask_are_refused(pretrained):
    with pytest.raises(ConfigError, match="full mask"):
        fill(*load(pretrained("bert"), mask="causal"), "[MASK]")
    with pytest.raises(ConfigError, match="head mlm"):
        fill(*load(pretrained("bert"), heads=("pooler",)), "[MASK]")
    with pytest.raises(ConfigError, match=r"byte-level tokenizer has no \[MASK\]|head mlm"):
        fill(*load(pretrained("gpt2")), "[MASK]")
    model, tokenizer = load(pretrained("bert"))
    with pytest.raises(DataError, match=r"byte-level tokenizer has no \[MASK\]"):
        fill(model, load(pretrained("gpt2"))[1], "[MASK]")
    with pytest.raises(DataError, match=r"'\[MASK\]' is not among"):
        fill(model, WordPiece(Vocab(tuple(token for token in tokenizer.vocab.tokens if token != "[MASK]"))), "[MASK]")
