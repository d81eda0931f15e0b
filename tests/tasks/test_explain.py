"""Explain: finds the letter that decides, adds up, leaves the model as it was; pairs, labels, masks, families; what is refused."""

from __future__ import annotations

import json
import math
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.labelled import LabelledText
from fishpaw.errors import ConfigError, DataError
from fishpaw.interpret.complete_gradients import complete_gradients
from fishpaw.interpret.faithfulness import deletion, insertion
from fishpaw.interpret.gradients import expected_gradients, gradient_times_input, smooth_gradients
from fishpaw.interpret.integrated_gradients import integrated_gradients, normed, summed
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.classify import Classify
from fishpaw.tasks.explain import Explain, Explanation, log_odds, masks, padding, probability, random_texts, zeros
from fishpaw.tasks.fill import fill
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.options import Options

AVERAGED = partial(expected_gradients, points=400)
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def trained():
    """A classifier that has learned that 好 is pos and 坏 is neg, wherever they stand, and that without them a text is none of both."""
    torch.manual_seed(0)
    letters = "今天气我们去公园玩吧"
    draw = random.Random(0)
    texts = ["".join(draw.sample(draw.choices(letters, k=4 + at % 2) + ["好", "坏", "今"][at % 3 :][:1], k=4)) for at in range(240)]
    config = ModelConfig(vocab_size=50, family="roformer", hidden_size=16, layers=1, attention_heads=2, intermediate_size=32,
                         position="rotary", dropout=0.0, attention_dropout=0.0, init_std=0.2)
    task = Classify.new(texts, ["neg", "pos", "none"], config=config, max_length=24)
    given = [LabelledText(text, labels=("pos" if "好" in text else "neg" if "坏" in text else "none",)) for text in texts]
    task.fit(given, options=Options(steps=80, batch_size=16, learning_rate=1e-2), progress=False)
    assert task.evaluate(given)["accuracy"] == 1.0
    return task


@pytest.fixture
def explain(trained):
    return Explain(trained.model, trained.tokenizer, max_length=24)


def neutral(model: Transformer, tokenizer: WordPiece, ids: torch.Tensor) -> torch.Tensor:
    """吧 everywhere, which the model has learned to mean nothing; a vector of zeros it has never seen."""
    (nothing,) = tokenizer.encode("吧", special=False).ids
    return model.table[torch.full_like(ids, nothing)].detach()


def usual(model: Transformer, tokenizer: WordPiece, ids: torch.Tensor) -> torch.Tensor:
    """16 texts of letters that stand in texts of all labels."""
    letters = torch.tensor(tokenizer.encode("今天气我们去公园玩吧", special=False).ids)
    return model.table[letters[torch.randint(10, (16, len(ids)), generator=torch.Generator().manual_seed(1))]].detach()


def scores(found: Explanation) -> dict[str, float]:
    return {one.token: one.score for one in found.tokens}


@pytest.mark.parametrize("method", [integrated_gradients, complete_gradients, smooth_gradients, AVERAGED])
def test_the_letter_that_decides_has_the_highest_score(explain, trained, method):
    baseline = usual if method is AVERAGED else neutral
    for text, label, decisive in (("今天好气", "pos", "好"), ("公园我坏", "neg", "坏")):
        found = explain.explain(text, method=method, baseline=baseline)
        assert found.label == label == trained.predict([text])[0].labels[0]
        assert max(found.tokens, key=lambda one: one.score).token == decisive
        against = scores(explain.explain(text, label="none", method=method, baseline=baseline))
        assert min(against, key=lambda token: against[token]) == decisive and against[decisive] < 0


def test_scores_add_up_to_the_change_of_the_probability(explain, trained):
    found = explain.explain("今天好气", baseline=neutral)
    assert found.value == pytest.approx(trained.predict(["今天好气"])[0].probabilities["pos"], abs=1e-5)
    assert math.fsum(one.score for one in found.tokens) == pytest.approx(found.value - found.baseline + found.error, abs=1e-5)
    assert found.relative < 1e-3 and abs(found.value - found.baseline) > 0.1 and found.points == 50
    few = explain.explain("今天好气", method=gradient_times_input, baseline=neutral)
    assert few.relative > 0.05                                       # planted: a method that doesn't add up
    others = [explain.explain("今天好气", label=label, baseline=neutral).tokens for label in ("neg", "none")]
    for own, *rest in zip(found.tokens, *others, strict=True):       # what speaks for a label speaks as much against all others
        assert own.score == pytest.approx(-sum(one.score for one in rest), abs=1e-5)


def test_where_the_model_is_sure_a_single_gradient_sees_little(explain):
    """Saturation, the reason for a path: at F = 0.998 all of it is a tenth of the change."""
    found = explain.explain("今天好气", method=gradient_times_input, baseline=neutral)
    assert sum(abs(one.score) for one in found.tokens) < 0.1 * (found.value - found.baseline) and found.relative > 0.9


def test_each_baseline_is_what_its_name_says(explain):
    model, tokenizer = explain.model, explain.tokenizer
    ids = torch.tensor(tokenizer.encode("今天好气").ids)
    assert not zeros(model, tokenizer, ids).any() and zeros(model, tokenizer, ids).shape == (6, 16)
    for baseline, id in ((padding, tokenizer.pad_id), (masks, tokenizer.mask_id)):
        replaced = ids.clone()
        replaced[1:-1] = id                                          # [CLS] and [SEP] stay
        expected = float(model(Batch.padded(replaced[None])).classes.softmax(-1)[0, 1].detach())
        assert explain.explain("今天好气", label="pos", baseline=baseline).baseline == pytest.approx(expected, abs=1e-6)
    several = random_texts(model, tokenizer, ids, count=7)
    assert several.shape == (7, 6, 16) and not any((several == model.table[id]).all(-1).any() for id in tokenizer.special_ids)
    assert not torch.equal(several, random_texts(model, tokenizer, ids, count=7, seed=1))
    found = explain.explain("今天好气", baseline=usual, method=AVERAGED)
    assert found.relative < 0.1


def test_what_is_measured_and_how_a_token_s_numbers_are_reduced(explain, trained):
    found = explain.explain("今天好气", measure=log_odds, baseline=neutral)
    share = trained.predict(["今天好气"])[0].probabilities["pos"]
    assert found.value == pytest.approx(math.log(share / (1 - share)), abs=1e-3) and found.relative < 1e-3
    values = torch.tensor([[2.0, -1.0, 0.5]])
    shares = values.softmax(-1)[0]
    assert [float(probability(values, at, False)) for at in range(3)] == pytest.approx(shares.tolist())
    assert [float(log_odds(values, at, False)) for at in range(3)] == pytest.approx((shares / (1 - shares)).log().tolist())
    assert float(probability(values, 1, True)) == pytest.approx(1 / (1 + math.e)) and float(log_odds(values, 1, True)) == -1
    lengths = explain.explain("今天好气", reduce=normed, baseline=neutral)
    assert min(one.score for one in lengths.tokens) >= 0 and max(lengths.tokens, key=lambda one: one.score).token == "好"


def test_deletion_and_insertion_agree_and_random_scores_do_worse(explain):
    model = explain.model
    ids = torch.tensor(explain.tokenizer.encode("今天好气公园我们").ids)
    x = model.table[ids].detach()

    def f(embedded):
        return model(Batch.padded(ids.expand(len(embedded), -1)), embedded=embedded.flatten(0, 1)).classes.softmax(-1)[:, 1]

    start = neutral(model, explain.tokenizer, ids)
    start[[0, -1]] = x[[0, -1]]
    values = summed(integrated_gradients(f, x, baseline=start).values)
    draw = torch.Generator().manual_seed(3)
    chance = [torch.randperm(len(ids), generator=draw).double() for _ in range(20)]
    for curve, sign in ((deletion, 1), (insertion, -1)):
        others = [sign * curve(f, x, one, baseline=start).area for one in chance]
        assert sign * curve(f, x, values, baseline=start).area < sum(others) / len(others) - 0.02
        assert sign * curve(f, x, -values, baseline=start).area > sign * curve(f, x, values, baseline=start).area


@pytest.mark.parametrize("family", ["bert", "roformer", "gpt2"])
@pytest.mark.parametrize("pair", [None, "今天去玩"])
def test_each_family_adds_up_in_texts_and_pairs_with_offsets_into_them(pretrained, family, pair):
    """Weights of standard deviation 0.6, far from smooth: as many points as are needed."""
    task = Explain(*_of(Classify.load(pretrained(family), labels=["a", "b", "c"], seed=2)))
    with torch.no_grad():
        task.model.heads["classifier"].dense.weight.mul_(20)
    text = "今天 好坏，"
    found = task.explain(text, pair, method=complete_gradients)
    assert found.relative <= 1e-3 and (found.text, found.pair) == (text, pair)
    for one in found.tokens:
        source = pair if one.second else text
        assert 0 <= one.start < one.end <= len(source) and (family == "gpt2" or source[one.start : one.end] == one.token)
    spans = found.spans(), found.spans(second=True)
    assert len(spans[0]) + len(spans[1]) == len(found.tokens) and bool(spans[1]) == (pair is not None)
    assert math.fsum(one.score for one in found.tokens) == pytest.approx(found.value - found.baseline + found.error, abs=1e-4)
    expected = Classify(task.model, task.tokenizer).predict([text], None if pair is None else [pair])[0]
    assert found.label == expected.labels[0] and found.value == pytest.approx(expected.probabilities[found.label], abs=1e-5)


def test_several_labels_are_a_sigmoid_each(pretrained):
    classifier = Classify.load(pretrained("bert"), labels=["a", "b"], multi_label=True, seed=2)
    task = Explain(*_of(classifier))
    for label in ("a", "b"):
        found = task.explain("今天好", label=label, method=complete_gradients)
        assert found.value == pytest.approx(classifier.predict(["今天好"])[0].probabilities[label], abs=1e-5) and found.relative <= 1e-3


def test_batches_of_any_size_say_the_same(explain, trained):
    alone, together = (Explain(trained.model, trained.tokenizer, tokens=tokens).explain("今天好气") for tokens in (1, 10_000))
    for one, other in zip(alone.tokens, together.tokens, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_the_model_is_as_it_was_and_inference_mode_does_no_harm(trained):
    model = trained.model
    model.train()
    first = next(iter(model.parameters())).requires_grad_(False)
    try:
        with torch.inference_mode():
            found = Explain(model, trained.tokenizer).explain("今天好气")
        assert model.training and not first.requires_grad and sum(one.requires_grad for one in model.parameters()) > 10
        assert all(one.grad is None for one in model.parameters())
    finally:
        first.requires_grad_(True)
        model.eval()
    again = Explain(model, trained.tokenizer).explain("今天好气")
    assert [one.score for one in again.tokens] == pytest.approx([one.score for one in found.tokens], abs=1e-6)


def test_nothing_is_computed_or_kept_for_weights(explain):
    def watched(f, x, *, baseline=None, rows=8):
        assert not any(parameter.requires_grad for parameter in explain.model.parameters())
        return integrated_gradients(f, x, baseline=baseline, points=2, rows=rows)

    assert explain.explain("今天", method=watched).points == 2
    assert all(parameter.requires_grad for parameter in explain.model.parameters())


def test_a_packed_model_has_no_gradients_and_says_so(pretrained):
    task = Explain(*_of(Classify.load(pretrained("bert"), labels=["a", "b"])))
    task.model.prepare()
    with pytest.raises(ConfigError, match="packed for inference"):
        task.explain("今天")
    task.model.train()
    task.model.eval()
    assert task.explain("今天").tokens


def test_a_saved_task_brings_its_length_and_its_kind(pretrained, tmp_path):
    Classify(*_of(Classify.load(pretrained("bert"), labels=["a", "b"])), max_length=7, pairs=False).save(tmp_path / "a")
    task = Explain.load(tmp_path / "a")
    assert task.max_length == 7 and task.labels == ("a", "b") and task.pairs is False
    assert [one.end for one in task.explain("今天气我们去公园").tokens] == [1, 2, 3, 4, 5]      # two of seven are added
    assert Explain.load(tmp_path / "a", max_length=9).max_length == 9
    with pytest.raises(DataError, match="single texts"):
        task.explain("今天", "气")


def test_a_masked_language_model_is_asked_about_its_mask(pretrained):
    task = Explain.load(pretrained("bert"))
    text = "今天[MASK]气好"
    found = task.explain(text, method=complete_gradients)
    (blank,) = fill(task.model, task.tokenizer, text)
    assert (found.label, found.value) == (blank.candidates[0][0], pytest.approx(blank.candidates[0][1], abs=1e-5))
    assert found.relative <= 1e-3 and [one.token for one in found.tokens] == list("今天气好")               # not the mask itself
    other = task.explain(text, label="园", method=complete_gradients)
    assert other.label == "园" and other.value < found.value
    for wrong, says in (("今天", "no \\[MASK\\]"), ("[MASK]天[MASK]", "2 \\[MASK\\]")):
        with pytest.raises(DataError, match=says):
            task.explain(wrong)
    with pytest.raises(ConfigError, match="no label 'nowhere'"):
        task.explain(text, label="nowhere")


def test_a_context_that_was_learned_is_found():
    """A model that has learned 今天 -> 气 and 我们 -> 去 from its neighbours says that they are why."""
    torch.manual_seed(3)
    tokenizer = WordPiece(characters(["今天气我们去公园"], least=1))
    config = ModelConfig(vocab_size=tokenizer.size, hidden_size=16, layers=1, attention_heads=2, intermediate_size=32, init_std=0.2,
                         dropout=0.0, attention_dropout=0.0, heads=("mlm",))
    model = Transformer(config)
    pairs = [(f"{a}{b}[MASK]{c}", d) for a, b, d in (("今", "天", "气"), ("我", "们", "去")) for c in "公园"]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = torch.tensor([tokenizer.encode(text).ids for text, _ in pairs])
    targets = torch.tensor([tokenizer.encode(answer, special=False).ids[0] for _, answer in pairs])
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, 3], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = Explain(model.eval(), tokenizer).explain("今天[MASK]园", label="气", baseline=masks)
    each = scores(found)
    assert found.value > 0.9 and each["今"] + each["天"] > 0.5 > 3 * abs(each["园"]) and found.relative < 1e-2


def test_figures_are_json_and_everything(explain):
    found = explain.explain("今天好气")
    value = json.loads(json.dumps(found.figures, ensure_ascii=False))
    assert [*value] == ["text", "pair", "label", "value", "baseline", "error", "points", "tokens", "cut"]
    assert [*value["tokens"][0]] == ["start", "end", "token", "score", "second"] and value["tokens"][2]["token"] == "好"


def test_what_cannot_be_is_refused(explain, pretrained):
    with pytest.raises(ConfigError, match="no label 'pso'. Did you mean 'pos'"):
        explain.explain("今", label="pso")
    for empty in ("", " ", "\u200b"):
        with pytest.raises(DataError, match="no token to explain"):
            explain.explain(empty)
    with pytest.raises(ConfigError, match="no classifier, and no head mlm"):
        Explain.load(pretrained("gpt2"))
    with pytest.raises(ConfigError, match="no classifier, and no head mlm"):
        Explain.load(pretrained("bert"), changes={"mask": "causal"})
    for wrong in ({"max_length": 3}, {"tokens": 0}):
        with pytest.raises(ConfigError):
            Explain(explain.model, explain.tokenizer, **wrong)
    shape = {"vocab_size": 20, "hidden_size": 8, "layers": 1, "attention_heads": 2, "intermediate_size": 8}
    both = Transformer(ModelConfig(encoder=ModelConfig(**shape), mask="causal", heads=("lm",), **shape))
    with pytest.raises(ConfigError, match="encoder-decoder"):
        Explain(both, explain.tokenizer)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_runs_and_has_everything(language, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, names = (DOCS / language / "explain.md").read_text(encoding="utf-8"), dict[str, Any]()
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    assert names["found"].label == "好评" and "好" in capsys.readouterr().out and (tmp_path / "why.html").is_file()
    assert all(f"`--{option}" in text for option in ("method", "points", "baseline", "html", "label", "json"))
    assert all(f"`{name}`" in text for name in ("integrated", "complete", "expected", "smooth", "input", "zero", "pad", "mask"))


def _of(task: Classify) -> tuple[Transformer, Any]:
    return task.model, task.tokenizer


def test_a_text_longer_than_what_is_read_is_marked(trained):
    task = Explain(trained.model, trained.tokenizer, max_length=6)
    for text, pair, cut in (("今天好气", None, False), ("今天好气我", None, True), ("今天", "好", False), ("今天", "好气", True)):
        found = task.explain(text, pair, method=gradient_times_input)
        assert found.cut == found.figures["cut"] == cut, (text, pair)
        assert (len(found.tokens) < len(text + (pair or ""))) == cut
    assert not Explain(trained.model, trained.tokenizer).explain("今天好气我" * 9, method=gradient_times_input).cut


def test_a_model_that_reads_any_length_is_asked_for_no_more_than_its_config_says(trained):
    free = Transformer(trained.model.config.change({"position": "rotary", "max_positions": 31}))
    assert free.longest is None and Explain(free, trained.tokenizer).max_length == 31
    assert Explain(free, trained.tokenizer, max_length=40).max_length == 40


def test_a_mask_behind_what_is_read_is_told_apart_from_none(pretrained):
    task = Explain.load(pretrained("bert"), max_length=6)
    with pytest.raises(DataError, match=r"has no \[MASK\] among the 6 tokens that are read\."):
        task.explain("今天好气我[MASK]")
    with pytest.raises(DataError, match=r"has no \[MASK\]\."):
        task.explain("今天")
