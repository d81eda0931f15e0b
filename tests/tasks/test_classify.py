"""Classify: learns, measures, keeps order, saves and goes on; refuses what it can't understand, with file and line."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch

import fishpaw.tasks.classify as classify
import fishpaw.tasks.encode as bulk
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.labelled import LabelledText
from fishpaw.errors import CheckpointError, ConfigError, DataError, FishpawError
from fishpaw.files import lock
from fishpaw.losses.imbalance import focal
from fishpaw.losses.penalties import adversarial
from fishpaw.model import linear
from fishpaw.model.transformer import Transformer
from fishpaw.positions.learned import Learned
from fishpaw.tasks.classify import Classify, pairs_of, small
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.options import Options
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.save import save
from fishpaw.weights.translate import read_config

TEXTS = ["很好", "", "今天气很好我们去公园玩吧" * 20, "   ", "👍\ud800\x00", "坏", "not Chinese at all", "今天，坏。" * 3]
BRIEF = Options(steps=3, batch_size=8, learning_rate=3e-3, log_every=1)


def learn(task: Classify, train: list[LabelledText], steps: int = 40, rate: float = 1e-2) -> None:
    task.fit(train, options=Options(steps=steps, batch_size=16, learning_rate=rate), progress=False)


def sharpen(task: Classify) -> Classify:
    """A new classifier says nearly the same of every text; make its differences show."""
    with torch.no_grad():
        for head, factor in (("pooler", 1 if "bert" == task.model.config.family else 20), ("classifier", 40)):
            task.model.heads[head].dense.weight.mul_(factor)
    return task


@pytest.fixture
def untrained(toy, tiny):
    return Classify.new([one.text for one in toy(64)], ["neg", "pos"], config=tiny(), max_length=24, seed=3)


# Learning

@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pair"])
def test_learns_what_one_letter_tells_and_measures_it_on_unseen_texts(toy, tiny, pairs):
    train, unseen = toy(128, pairs=pairs), toy(60, seed=5, pairs=pairs)
    texts = [text for one in train for text in (one.text, one.pair) if text]
    task = Classify.new(texts, ["neg", "pos"], config=tiny(), max_length=24)
    before = task.evaluate(unseen)["accuracy"]
    learn(task, train)
    figures = task.evaluate(unseen)
    assert figures["accuracy"] == figures["micro_f1"] == figures["macro_f1"] == 1.0 > before
    assert figures["majority"] == 0.5 and figures["loss"] < 0.1
    liars = [replace(one, labels=("pos" if one.labels == ("neg",) else "neg",)) for one in unseen]
    assert task.evaluate(liars)["accuracy"] == 0.0                   # planted: wrong labels are seen


def test_learns_any_number_of_labels_none_too(tiny):
    kinds = {"好": ("good",), "坏": ("bad",), "好坏": ("good", "bad"), "今": ()}
    train = [LabelledText(text, labels=labels) for text, labels in kinds.items()] * 16
    task = Classify.new([one.text for one in train], ["good", "bad"], config=tiny(), multi_label=True)
    learn(task, train, steps=150, rate=3e-3)
    assert [set(one.labels) for one in task.predict(list(kinds))] == [set(labels) for labels in kinds.values()]
    assert task.evaluate(train)["accuracy"] == 1.0
    assert "majority" not in task.evaluate(train)


def test_weights_are_the_best_on_dev_and_a_wrong_label_in_dev_is_told_before_the_first_step(untrained, toy):
    untouched = untrained.model.state_dict()["embedding.tokens.weight"].clone()
    bad = [*toy(3), LabelledText("好", labels=("mid",), file="dev.tsv", line=4)]
    with pytest.raises(DataError, match=r"dev.tsv, line 4: unknown label 'mid'.*neg, pos"):
        untrained.fit(toy(16), bad, options=BRIEF)
    assert torch.equal(untouched, untrained.model.state_dict()["embedding.tokens.weight"])
    said = []
    result = untrained.fit(toy(64), toy(20, seed=1), options=replace(BRIEF, steps=12, evaluate_every=3), report=said.append)
    assert [one["step"] for one in said if one["event"] == "evaluate"] == [3, 6, 9, 12]
    assert result.best == untrained.evaluate(toy(20, seed=1))["accuracy"] == max(one["accuracy"] for one in result.history)


def test_bf16_trains_and_leaves_fp32_weights(untrained, toy):
    result = untrained.fit(toy(32), options=replace(BRIEF, precision="bf16"))
    assert math.isfinite(result.loss)
    assert {parameter.dtype for parameter in untrained.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("family", ["bert", "roformer", "gpt2"])
def test_a_batch_without_padding_has_the_loss_and_the_gradients_of_a_padded_one(pretrained, family, several, monkeypatch):
    """fp64, pairs of 2 to 17 tokens; the padded batch is made here."""
    task = Classify.load(pretrained(family), labels=["a", "b", "c"], multi_label=several, max_length=17)
    task.model.double().eval()                                       # no dropout: both draw other numbers
    given = [LabelledText(text, TEXTS[-1 - at], labels=("abc"[at % 3],)) for at, text in enumerate(TEXTS)]
    features = [task.encode(one) for one in given]
    seen = []
    monkeypatch.setattr(classify, "fit", lambda *a, loss, collate, **k: seen.append((loss, collate)))
    task.fit(given)
    (loss, collate), = seen

    def padded(rows):
        sequences = [[torch.tensor(getattr(one, name)) for one in rows] for name in ("ids", "segments")]
        ids, segments = (torch.nn.utils.rnn.pad_sequence(one, batch_first=True, padding_value=0) for one in sequences)
        keep = torch.arange(ids.shape[1]) < torch.tensor([len(one) for one in rows])[:, None]
        return Batch.padded(ids, keep=keep, segments=segments if task.model.config.segments > 1 else None)

    def learned(rows):
        total, count = loss(task.model, rows)
        gradients = torch.autograd.grad(total, list(task.model.parameters()), allow_unused=True)
        return torch.stack([total.detach(), torch.as_tensor(count).double()]), [one for one in gradients if one is not None]

    rows = collate(features)
    assert rows.texts.shape is None and len(rows.texts.ids) == sum(map(len, features)) and len(rows.texts.grids) > 1
    (value, gradients), (expected, wanted) = learned(rows), learned(replace(rows, texts=padded(features)))
    assert torch.allclose(value, expected, rtol=1e-12) and len(gradients) == len(wanted) > 10
    assert max(float((one - other).abs().max()) for one, other in zip(gradients, wanted, strict=True)) < 1e-12
    planted = learned(replace(rows, texts=collate(features[1:] + features[:1]).texts))     # texts that stand beside another's target
    assert max(float((one - other).abs().max()) for one, other in zip(planted[1], wanted, strict=True)) > 1e-3


def test_generators_are_read_once_and_whole(untrained, toy):
    assert untrained.evaluate(one for one in toy(12)) == untrained.evaluate(toy(12))
    assert untrained.fit((one for one in toy(24)), (one for one in toy(8)), options=BRIEF).step == 3


# Figures by hand

class Oracle(Classify):
    """Answers with given scores."""

    def __init__(self, task: Classify, scores: list[list[float]]) -> None:
        super().__init__(task.model, task.tokenizer)
        self.scores = torch.tensor(scores)

    def _scores(self, features, batch_size, *, progress):
        return self.scores


def test_figures_of_one_label_by_hand(untrained):
    """neg neg pos pos pos, answered neg pos pos pos neg: right 3 of 5; F1 of neg 1/2, of pos 2/3."""
    truth = [LabelledText("今", labels=(label,)) for label in ("neg", "neg", "pos", "pos", "pos")]
    scores = [[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]]
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert Oracle(untrained, scores).evaluate(truth) == pytest.approx({
        "accuracy": 3 / 5, "micro_f1": 3 / 5, "macro_f1": (1 / 2 + 2 / 3) / 2, "loss": (3 * right + 2 * wrong) / 5, "majority": 3 / 5,
    })  # fmt: skip


def test_figures_of_several_labels_by_hand(tiny):
    """{a}, {a b}, {} answered {a}, {a}, {b}: one set of three right; 2 right, 1 wrong, 1 missed: micro 4/6; a 1, b 0: macro 1/2."""
    task = Classify.new(["今天"], ["a", "b"], config=tiny(), multi_label=True)
    truth = [LabelledText("今", labels=labels) for labels in (("a",), ("a", "b"), ())]
    figures = Oracle(task, [[1.0, -1.0], [1.0, -1.0], [-1.0, 0.0]]).evaluate(truth)       # 0: a probability of exactly 0.5 holds
    assert figures["accuracy"] == pytest.approx(1 / 3) and figures["micro_f1"] == pytest.approx(4 / 6)
    assert figures["macro_f1"] == pytest.approx(1 / 2)


def test_scores_that_are_no_numbers_are_refused(untrained):
    with torch.no_grad():
        untrained.model.heads["classifier"].dense.bias[0] = math.nan
    with pytest.raises(FishpawError, match="not finite"):
        untrained.predict(["好"])


# Prediction

@pytest.mark.parametrize("family", ["bert", "roformer", "gpt2"])
@pytest.mark.parametrize("paired", [False, True])
def test_batched_is_one_by_one_in_order_for_any_lengths(pretrained, family, paired):
    task = sharpen(Classify.load(pretrained(family), labels=["a", "b", "c"], max_length=17))
    pairs = TEXTS[::-1] if paired else None
    alone = [task.predict([text], [pairs[at]] if pairs else None)[0] for at, text in enumerate(TEXTS)]
    assert len({round(one.probabilities["a"], 4) for one in alone}) > 4                  # the order can be seen
    assert len({one.labels for one in alone}) > 1
    for batch_size in (1, 3, 64):
        found = task.predict(TEXTS, pairs, batch_size=batch_size)
        for one, other in zip(found, alone, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
            assert sum(one.probabilities.values()) == pytest.approx(1) and one.labels == other.labels
        examples = [LabelledText(text, pairs[at] if pairs else None, alone[at].labels) for at, text in enumerate(TEXTS)]
        assert task.evaluate(examples, batch_size=batch_size)["accuracy"] == 1.0
    assert task.predict([]) == task.predict([], []) == []


@pytest.mark.parametrize("paired", [False, True])
def test_an_endless_stream_is_answered_in_order_a_window_ahead(pretrained, paired, monkeypatch):
    monkeypatch.setattr(bulk, "WINDOW", 5)
    task, read = sharpen(Classify.load(pretrained("bert"), labels=["a", "b"], max_length=17)), []

    def endless():
        for text in cycle(TEXTS):
            read.append(text)
            yield text

    found = []
    for prediction in task.stream(endless(), cycle(TEXTS[::-1]) if paired else None):
        found.append(prediction.probabilities["a"])
        assert len(read) == 5 * math.ceil(len(found) / 5)
        if len(found) == 37:
            break
    known = [one.probabilities["a"] for one in task.predict(TEXTS, TEXTS[::-1] if paired else None)]
    expected = [known[at % len(TEXTS)] for at in range(37)]
    assert found == pytest.approx(expected, abs=1e-5) != pytest.approx(expected[1:] + expected[:1], abs=1e-5)
    with pytest.raises(DataError, match="3 texts but 2 pairs"):
        list(task.stream(iter(TEXTS[:3]), iter(TEXTS[:2])))
    with pytest.raises(DataError, match="0 texts but 1 pairs"):
        list(task.stream(iter(TEXTS[:5]), iter(TEXTS[:6])))
    with pytest.raises(DataError, match="one string"):
        list(task.stream("今天"))


def test_a_batch_is_bounded_by_its_tokens(untrained, monkeypatch):
    sizes = []
    run = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, batch, **k: sizes.append(len(batch.ids)) or run(self, batch, **k))
    texts = ["今" * (number % 29) for number in range(300)]
    untrained.predict(texts, batch_size=3)
    assert 65 < max(sizes) <= 3 * 24 and sum(sizes) == sum(min(24, number % 29 + 2) for number in range(300))
    assert len(sizes) < 1.2 * sum(sizes) / (3 * 24)


def test_a_bar_stands_where_it_is_asked_for(untrained, toy, capfd):
    shown = untrained.predict(["今", "天", "气"], progress=True)
    assert "3/3" in capfd.readouterr().err and shown == untrained.predict(["今", "天", "气"])
    untrained.evaluate(toy(7), progress=True)
    assert "7/7" in capfd.readouterr().err
    untrained.evaluate(toy(7))
    assert not capfd.readouterr().err


@pytest.mark.parametrize("hidden", [True, False])
def test_all_works_the_plain_way(toy, tiny, hidden, monkeypatch, tmp_path):
    """Without oneDNN's operators, or with FISHPAW_LINEAR=plain: train, evaluate, predict, prepared too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if hidden:
        monkeypatch.delenv("FISHPAW_LINEAR", raising=False)
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    else:
        monkeypatch.setenv("FISHPAW_LINEAR", "plain")
        monkeypatch.setattr(torch.ops, "mkldnn", None)               # whoever touches it fails
        monkeypatch.setattr(linear, "_is_there", lambda: True)
    linear.path.cache_clear()
    try:
        task = Classify.new([one.text for one in toy(64)], ["neg", "pos"], config=tiny(), max_length=24)
        learn(task, toy(64))
        assert task.evaluate(toy(20, seed=5))["accuracy"] == 1.0
        before = task.predict(TEXTS)
        for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            task.model.prepare(dtype=dtype)
            for one, other in zip(task.predict(TEXTS), before, strict=True):
                assert one.probabilities == pytest.approx(other.probabilities, abs=near)
        assert linear.path("dense") == linear.path("packed") == "plain"
    finally:
        monkeypatch.undo()
        linear.path.cache_clear()


def test_only_what_stands_within_max_length_counts(pretrained):
    task = Classify.load(pretrained("bert"), labels=["a", "b"], max_length=9)
    long = "今天气我们去公园玩吧"
    assert task.predict([long]) == task.predict([long[:7] + "坏坏坏"]) != task.predict([long[:6] + "坏"])
    assert Classify.load(pretrained("bert"), labels=["a", "b"], max_length=999).max_length == 31
    assert Classify.load(pretrained("roformer"), labels=["a", "b"], max_length=999).max_length == 999


def test_a_causal_model_pools_its_last_token(pretrained):
    task = Classify.load(pretrained("gpt2"), labels=["a", "b"])
    assert task.predict(["好今"]) != task.predict(["好天"])                                # at the first token both would be equal
    assert task.model.heads["pooler"].at == "last"
    assert Classify.load(pretrained("bert"), labels=["a", "b"]).model.heads["pooler"].at == "first"


@pytest.mark.parametrize("mask", ["causal", "unilm"])
def test_a_new_model_whose_mask_looks_back_pools_its_last_token(tiny, mask):
    task = Classify.new(["好坏"], ["a", "b"], config=tiny(mask=mask))
    assert task.model.heads["pooler"].at == "last"
    assert task.predict(["好"], ["好"]) != task.predict(["好"], ["坏"])


def test_training_mode_is_as_it_was(untrained):
    untrained.model.train()
    untrained.model.embedding.eval()                                                       # frozen: it must not wake up
    modes = [module.training for module in untrained.model.modules()]
    first = untrained.predict(["好"])
    assert untrained.predict(["好"]) == first
    assert [module.training for module in untrained.model.modules()] == modes and len({*modes}) == 2
    untrained.model.embedding.forward = None                                               # an exception in the middle
    with pytest.raises(TypeError):
        untrained.predict(["好"])
    assert [module.training for module in untrained.model.modules()] == modes


@pytest.mark.gpu
def test_cuda_says_what_the_cpu_says(pretrained):
    task = Classify.load(pretrained("bert"), labels=["a", "b"], max_length=17)
    here = sharpen(task).predict(TEXTS, batch_size=3)
    task.model.to("cuda")
    for one, other in zip(task.predict(TEXTS, batch_size=3), here, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    task.fit([LabelledText(text, labels=("a",)) for text in TEXTS], options=replace(BRIEF, precision="bf16"))
    assert task.evaluate([LabelledText("好", labels=("a",))])["accuracy"] == 1.0


# Loading and saving

@pytest.mark.parametrize("family", ["bert", "roformer", "gpt2"])
@pytest.mark.parametrize("several", [False, True])
def test_a_saved_task_gives_the_same_bits_again(pretrained, family, several, tmp_path):
    task = Classify.load(pretrained(family), labels=["甲", "乙", "丙"], multi_label=several, max_length=19)
    task.save(tmp_path / "task")
    again = Classify.load(tmp_path / "task")
    assert (again.labels, again.multi_label, again.max_length) == (("甲", "乙", "丙"), several, 19)
    assert again.predict(TEXTS) == task.predict(TEXTS)
    again.save(tmp_path / "again")
    files = [path.name for path in (tmp_path / "task").iterdir()]
    assert all((tmp_path / "task" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    assert Classify.load(tmp_path / "task", max_length=7).max_length == 7


def test_a_new_classifier_keeps_the_pooler_and_comes_from_the_seed(pretrained):
    def heads(seed: int) -> dict[str, torch.Tensor]:
        return Classify.load(pretrained("bert"), labels=["a", "b"], seed=seed).model.heads.state_dict()

    state = torch.random.get_rng_state()
    one, same, other = heads(5), heads(5), heads(6)
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = "classifier.dense.weight"
    assert torch.equal(one[weight], same[weight]) and not torch.equal(one[weight], other[weight])
    assert torch.equal(one["pooler.dense.weight"], other["pooler.dense.weight"])
    assert not [name for name in one if name.startswith(("mlm", "nsp"))]


def test_the_same_labels_keep_the_classifier_and_its_order_other_labels_begin_anew(pretrained, tmp_path):
    task = Classify.load(pretrained("bert"), labels=["b", "a"])
    task.save(tmp_path / "task")
    again = Classify.load(tmp_path / "task", labels=["a", "b"], seed=9)
    assert again.labels == ("b", "a") and again.predict(TEXTS) == task.predict(TEXTS)
    for labels, several in ((["a", "c"], False), (["a", "b"], True), (["a", "b", "c"], False)):
        new = Classify.load(tmp_path / "task", labels=labels, multi_label=several, seed=9)
        assert new.labels == tuple(labels) and new.multi_label is several
        assert new.predict(["好"])[0].probabilities != task.predict(["好"])[0].probabilities


def test_new_is_reproducible_and_keeps_every_character_of_few_texts():
    texts = ["好", "坏", "it"]
    one, same, other = (Classify.new(texts, ["a", "b"], seed=seed, config=small(9)) for seed in (1, 1, 2))
    assert one.predict(texts) == same.predict(texts) != other.predict(texts)
    assert {"好", "坏", "i", "##i"} <= set(one.tokenizer.vocab.tokens)
    many = Classify.new([*["好" * 2] * 1000, "坏"], ["a", "b"], config=small(9))
    assert "好" in many.tokenizer.vocab and "坏" not in many.tokenizer.vocab


def test_settings_of_another_task_matter_only_to_who_asks_for_its_classifier(pretrained, tmp_path):
    Classify.load(pretrained("bert"), labels=["a", "b"]).save(tmp_path / "task")
    (tmp_path / "task" / "manifest.json").unlink()
    settings = tmp_path / "task" / "task.json"
    for text, says in (
        ('{"task": "tag", "max_length": 9}', "doesn't hold the settings"),
        ('{"task": "classify", "max_length": "9"}', "doesn't hold the settings"),
        ("{", "can't be read"),
    ):  # fmt: skip
        settings.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=says) as caught:
            Classify.load(tmp_path / "task")
        assert "task.json" in str(caught.value)
    settings.write_text('{"task": "tag", "max_length": 9}', encoding="utf-8")
    assert Classify.load(tmp_path / "task", labels=["c", "d"]).max_length == 31


# Going on

def test_a_run_that_ended_is_not_run_again_and_a_stopped_one_ends_with_the_same_bits(toy, tiny, tmp_path):
    def begin() -> Classify:
        return Classify.new([one.text for one in toy(40)], ["neg", "pos"], config=tiny(dropout=0.1), max_length=24)

    options = replace(BRIEF, steps=8, evaluate_every=3, save_every=1)
    whole = begin()
    result = whole.fit(toy(40), toy(10), options=options, out=str(tmp_path / "whole"))
    assert whole.fit(toy(40), toy(10), options=options, out=tmp_path / "whole") == replace(result, resumed_from=8)
    assert Classify.load(tmp_path / "whole" / "model").predict(TEXTS) == whole.predict(TEXTS)

    class Stop(Exception):
        pass

    def stop(record: dict) -> None:
        if record["event"] == "step" and record["step"] == 5:
            raise Stop

    with pytest.raises(Stop):
        begin().fit(toy(40), toy(10), options=options, out=tmp_path / "parts", report=stop)
    rest = begin()
    second = rest.fit(toy(40), toy(10), options=options, out=tmp_path / "parts")
    assert 0 < second.resumed_from < 8 and second.history == result.history
    assert rest.predict(TEXTS) == whole.predict(TEXTS)


CHANGES = {
    "data": lambda task, toy: (toy(41), toy(10), "examples was 40, now 41"),
    "dev": lambda task, toy: (toy(40), toy(11), "dev was"),
    "no dev": lambda task, toy: (toy(40), None, "now none"),
    "max_length": lambda task, toy: (setattr(task, "max_length", 23), (toy(40), toy(10), "max_length was 24, now 23"))[1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_in_the_folder_is_refused_with_what_differs(toy, tiny, tmp_path, change):
    def begin(seed: int = 0) -> Classify:
        return Classify.new([one.text for one in toy(40)], ["neg", "pos"], config=tiny(), max_length=24, seed=seed)

    begin().fit(toy(40), toy(10), options=BRIEF, out=tmp_path)
    task = begin()
    train, dev, says = CHANGES[change](task, toy)
    with pytest.raises(CheckpointError, match=says):
        task.fit(train, dev, options=BRIEF, out=tmp_path)
    with pytest.raises(CheckpointError, match="starting weights was"):                     # same shapes, other values
        begin(seed=1).fit(toy(40), toy(10), options=BRIEF, out=tmp_path)
    assert task.fit(train, dev, options=BRIEF, out=tmp_path, resume=False).resumed_from is None


def test_who_finds_the_folder_taken_does_not_touch_the_run_in_it(toy, tiny, tmp_path):
    def begin(seed: int = 0) -> Classify:
        return Classify.new([one.text for one in toy(40)], ["neg", "pos"], config=tiny(), max_length=24, seed=seed)

    class Stop(Exception):
        pass

    def stop(record: dict) -> None:
        if record["event"] == "step" and record["step"] == 5:
            raise Stop

    options = replace(BRIEF, steps=8, save_every=1)
    with pytest.raises(Stop):
        begin().fit(toy(40), toy(10), options=options, out=tmp_path, report=stop)
    with lock(tmp_path / "training"), pytest.raises(FishpawError, match="is writing there"):
        begin(seed=1).fit(toy(40), options=options, out=tmp_path, resume=False)
    assert begin().fit(toy(40), toy(10), options=options, out=tmp_path).resumed_from == 4


# Mistakes

@pytest.mark.parametrize(
    ("example", "says"),
    [
        (LabelledText("好", labels=("mid",), file="x.tsv", line=7), r"x.tsv, line 7: unknown label 'mid'\. The labels are neg, pos"),
        (LabelledText("好", labels=("neg", "pos"), file="x.tsv", line=7), "x.tsv, line 7: 2 labels"),
        (LabelledText("好", labels=()), "The example '好': 0 labels"),
        (LabelledText("好", "坏", labels=("pos",), file="x.tsv", line=8), r"toy.tsv, line 1: one text where others are pairs"),
        (("好", "pos"), "Example 2 is a tuple"),
        ({"text": "好", "label": "pos"}, "Example 2 is a dict"),
    ],
)
def test_an_example_that_cannot_be_is_refused(untrained, toy, example, says):
    for verb in (untrained.evaluate, lambda given: untrained.fit(given, options=BRIEF)):
        with pytest.raises(DataError, match=says):
            verb([*toy(2), example])


def test_pairs_are_all_or_none(toy):
    assert pairs_of(toy(3)) is None and pairs_of([]) is None
    assert pairs_of([LabelledText("a", "b"), LabelledText("c", "")]) == ["b", ""]


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda task: task.predict("很好"), DataError, "one string"),
        (lambda task: task.predict(["很好"], "坏"), DataError, "one string"),
        (lambda task: task.predict(["很好"], ["坏", "好"]), DataError, "1 texts but 2 pairs"),
        (lambda task: task.predict([3]), DataError, "not a string"),
        (lambda task: task.predict(["很好"], batch_size=0), ConfigError, "batch_size is 0"),
        (lambda task: task.evaluate([]), DataError, "nothing to evaluate"),
        (lambda task: task.fit([]), DataError, "no example in train"),
        (lambda task: task.fit([LabelledText("好", labels=("pos",))], []), DataError, "no example in dev"),
        (lambda task: Classify(task.model, task.tokenizer, max_length=3), ConfigError, "max_length is 3"),
        (lambda task: Classify.new(["好"], ["a"]), ConfigError, "nothing to choose"),
        (lambda task: Classify.new(["好"], ["a", "a"]), ConfigError, "different names"),
        (lambda task: Classify.new(["好"], "ab"), ConfigError, "different names"),
        (lambda task: Classify.new(["好"], ["a", " "]), ConfigError, "different names"),
        (lambda task: Classify.new(["好"], []), ConfigError, "nothing to choose"),
        (lambda task: Classify.new("好坏", ["a", "b"]), DataError, "one string"),
        (lambda task: Classify.new(["", " "], ["a", "b"]), DataError, "No character"),
        (lambda task: Classify.new(["好"], ["a", "b"], seed=-1), ConfigError, "seed is -1"),
    ],
)
def test_a_call_that_cannot_be_is_refused(untrained, call, kind, says):
    with pytest.raises(kind, match=says):
        call(untrained)


def test_loading_without_labels_needs_a_classifier(pretrained):
    with pytest.raises(ConfigError, match="holds no classifier"):
        Classify.load(pretrained("bert"))
    with pytest.raises(ConfigError, match="multi_label is given without labels"):
        Classify.load(pretrained("bert"), multi_label=True)
    with pytest.raises(ConfigError, match="has no classifier"):
        Classify(Transformer(ModelConfig(vocab_size=9, hidden_size=8, layers=1, attention_heads=2, intermediate_size=8)),
                 WordPiece(characters(["好"], least=1)))


# Against transformers

@pytest.mark.parity
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_transformers_opens_the_saved_classifier_with_the_same_answers(pretrained, family, several, tmp_path):
    transformers = pytest.importorskip("transformers")
    task = sharpen(Classify.load(pretrained(family), labels=["甲", "乙", "丙"], multi_label=several))
    task.save(tmp_path / "task")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "task", output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "task")
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(task.labels))
    assert model.config.problem_type == ("multi_label_classification" if several else "single_label_classification")
    texts, pairs = ["今天气很好", "坏", "我们去公园玩吧，好"], ["好", "房间", "不"]
    inputs = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**inputs).logits
        wrong = model(**{**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])}).logits         # planted
    theirs, wrong = (x.double().sigmoid() if several else x.double().softmax(-1) for x in (theirs, wrong))
    ours = torch.tensor([list(one.probabilities.values()) for one in task.predict(texts, pairs)])
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=0)
    assert not torch.allclose(ours, wrong.float(), atol=1e-3)


def test_saved_settings_are_readable(untrained, tmp_path):
    untrained.save(tmp_path / "task")
    assert json.loads((tmp_path / "task" / "task.json").read_text(encoding="utf-8")) == {"task": "classify", "max_length": 24}


@pytest.mark.parametrize("paired", [False, True])
def test_a_task_remembers_whether_it_reads_pairs(toy, tiny, tmp_path, paired):
    train, other = toy(32, pairs=paired), toy(8, pairs=not paired)
    task = Classify.new([one.pair or one.text for one in train], ["neg", "pos"], config=tiny(), max_length=24)
    task.evaluate(train)
    task.evaluate(other)                                             # untrained: both
    with pytest.raises(DataError, match="was trained on"):
        task.fit(train, other, options=Options(steps=1))
    assert task.pairs is None
    task.fit(train, options=Options(steps=1), out=tmp_path)
    says = "trained on pairs of texts; these are single texts" if paired else "trained on single texts; these are pairs of texts"
    for one in (task, Classify.load(tmp_path / "model")):
        one.evaluate(train)
        one.predict([])
        with pytest.raises(DataError, match=says):
            one.evaluate(other)
        with pytest.raises(DataError, match=says):
            one.predict(["今"], None if paired else ["天"])
    assert Classify.load(tmp_path / "model", labels=["a", "b"]).pairs is None
    (tmp_path / "model" / "manifest.json").unlink()
    settings = tmp_path / "model" / "task.json"
    settings.write_text('{"task": "classify", "max_length": 24}', encoding="utf-8")              # from before the key
    assert Classify.load(tmp_path / "model").evaluate(other)
    settings.write_text('{"task": "classify", "pairs": 1}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="settings of a classifier"):
        Classify.load(tmp_path / "model")


# Switches that are turned before training

TURNED = [{"position": {"name": "hierarchical", "alpha": 0.4}}, {"attention": "linear"}, {"residual_scores": True},
          {"changes": {"dropout": 0.3, "qk_norm": True}}, {"mask": "causal"}]  # fmt: skip


@pytest.mark.parametrize("turned", TURNED, ids=str)
def test_switches_are_turned_saved_and_part_of_the_run(pretrained, toy, tmp_path, turned):
    labels = ["neg", "pos"]
    task = Classify.load(pretrained("bert"), labels=labels, **turned)
    for field, value in turned.get("changes", turned).items():
        assert getattr(task.model.config, field) == value
    assert spec_of_pooler(task).get("at", "first") == ("last" if "mask" in turned else "first")
    task.fit(toy(16), options=BRIEF, out=tmp_path / "run", progress=False)
    again = Classify.load(tmp_path / "run" / "model")
    assert again.model.config == task.model.config and again.predict(["今天好"]) == task.predict(["今天好"])
    with pytest.raises(FishpawError, match="model"):
        Classify.load(pretrained("bert"), labels=labels).fit(toy(16), options=BRIEF, out=tmp_path / "run", progress=False)
    same = Classify.load(pretrained("bert"), labels=labels, **turned)
    assert same.fit(toy(16), options=BRIEF, out=tmp_path / "run", progress=False).resumed_from == BRIEF.steps


def spec_of_pooler(task: Classify) -> dict[str, object]:
    return next(dict(head) for head in task.model.config.heads if isinstance(head, dict) and head["name"] == "pooler") \
        if not any(head == "pooler" for head in task.model.config.heads) else {}  # fmt: skip


def test_heads_are_not_to_be_changed(pretrained):
    with pytest.raises(ConfigError, match="heads are its own"):
        Classify.load(pretrained("bert"), labels=["a", "b"], changes={"heads": ("mlm",)})


def test_a_length_beyond_the_positions_is_said(pretrained, caplog):
    assert Classify.load(pretrained("bert"), labels=["a", "b"], max_length=31).max_length == 31 and not caplog.records
    assert Classify.load(pretrained("bert"), labels=["a", "b"], max_length=99).max_length == 31
    (record,) = caplog.records
    assert "max_length is 99, but the model has 31 positions" in record.getMessage()


def test_an_encoder_decoder_is_refused_and_its_encoder_taken(tmp_path, toy):
    vocab = characters([one.text for one in toy(20)], least=1)
    sizes = {"vocab_size": len(vocab), "d_model": 12, "d_kv": 6, "num_heads": 2, "num_layers": 1, "d_ff": 20}
    model = Transformer(read_config(sizes, FAMILIES["t5"]).change({"heads": ("lm",)}))
    save(model, tmp_path / "t5", WordPiece(vocab))
    with pytest.raises(ConfigError, match='encoder-decoder can\'t classify texts.*family="t5_encoder"'):
        Classify.load(tmp_path / "t5", labels=["neg", "pos"])
    with pytest.raises(ConfigError, match="encoder-decoder can't classify"):
        Classify(model, WordPiece(vocab))
    task = Classify.load(tmp_path / "t5", labels=["neg", "pos"], family="t5_encoder")
    task.save(tmp_path / "task")
    assert Classify.load(tmp_path / "task").predict(["好"]) == task.predict(["好"])


def test_a_position_of_ones_own_is_told_before_the_first_step(untrained, toy, tmp_path):
    model = Transformer(untrained.model.config.change({"position": lambda config: Learned(config.max_positions, config.embedding, 0.02)}))
    with pytest.raises(ConfigError, match=r"torch\.save\(model\.state_dict\(\), FILE\), or put the part in the folder fishpaw/positions"):
        Classify(model, untrained.tokenizer).fit(toy(8), options=BRIEF, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# Another loss

def test_another_loss_is_minimised_and_a_run_knows_which(toy, tiny, tmp_path):
    train = toy(64)
    asked = []

    def doubled(model, rows):
        asked.append(len(rows.targets))
        total, count = classify.label_loss(model, rows)
        return total + focal(model(rows.texts).classes, rows.targets)[0], count

    def trained(out=None, **given):
        task = Classify.new([one.text for one in train], ["neg", "pos"], config=tiny(), max_length=24, seed=3)
        task.fit(train, options=BRIEF, progress=False, out=out, **given)
        return task.model.state_dict()["heads.classifier.dense.weight"].clone()

    plain, other = trained(), trained(tmp_path / "run", loss=doubled)
    assert asked == [8, 8, 8] and not torch.equal(plain, other)
    assert torch.equal(plain, trained(loss=classify.label_loss))
    place = {}

    def attacked(model, rows):                                       # a penalty around the loss, as docs/en/losses.md has it
        place["loss"] = place.get("loss") or adversarial(classify.label_loss, model.embedding.tokens, rows=lambda rows: rows.texts.row)
        return place["loss"](model, rows)

    assert not torch.equal(plain, trained(loss=attacked))
    with pytest.raises(CheckpointError, match="loss"):
        trained(tmp_path / "run")
