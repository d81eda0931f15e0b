"""Seq2Seq: UniLM and encoder-decoder learn to turn strings round, train what decoding does, cut, save, go on, and name mistakes."""

from __future__ import annotations

import json
import logging
import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import fishpaw.tasks.seq2seq as seq2seq
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.collate import pad
from fishpaw.data.pairs import Pair
from fishpaw.decoding.copying import CopyOnly
from fishpaw.decoding.limits import Limits
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.losses.generation import next_tokens, sparse_cross_entropy
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.classify import Classify
from fishpaw.tasks.seq2seq import Feature, Seq2Seq, cross_entropy, plain
from fishpaw.train.options import Options

LETTERS = "甲乙丙丁戊己庚辛"
KINDS = ("unilm", "encoder-decoder")


def turned(count: int, seed: int = 0, most: int = 5) -> list[Pair]:
    """Strings of up to `most` letters, and the same from behind."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(LETTERS, k=chance.randint(1, most))) for _ in range(count)]
    return [Pair(word, word[::-1], "toy.tsv", line + 1) for line, word in enumerate(words)]


def shape(kind: str, **changes: object) -> ModelConfig:
    sizes = {"vocab_size": 1, "hidden_size": 32, "layers": 2, "attention_heads": 2, "intermediate_size": 64, "position": "rotary",
             "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.1, "family": "roformer", **changes}  # fmt: skip
    if kind == "unilm":
        return ModelConfig(**sizes)
    inner = ModelConfig(**sizes | {"segments": 0, "layers": 1})
    return inner.change({"encoder": inner, "mask": "causal"})


def make(kind: str, seed: int = 1, double: bool = False, **changes: object) -> Seq2Seq:
    task = Seq2Seq.new(turned(64), config=shape(kind, **changes), max_length=9, max_new=7, seed=seed)
    if double:
        task.model.double()
    return task


def sharp(task: Seq2Seq) -> Seq2Seq:
    """Weights large enough for every fault to show, in fp64; of the special tokens only [SEP] is ever said."""
    torch.manual_seed(4)
    for parameter in task.model.double().requires_grad_(False).parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.6)
    task.model.heads["mlm"].bias[[0, 1, 2, 4]] = -1000
    task.model.heads["mlm"].bias[task.tokenizer.eos_id] = 3
    return task


def naive(task: Seq2Seq, pair: Pair) -> tuple[float, int]:
    """-log p of a target's tokens, token after token, each from all before it in a model call of its own; and their number."""
    tokenizer, model = task.tokenizer, task.model
    source = torch.tensor([tokenizer.encode(pair.source).ids])
    target = [*tokenizer.encode(pair.target, special=False).ids, tokenizer.eos_id]
    total = 0.0
    for place, token in enumerate(target):
        before = torch.tensor([target[:place]], dtype=torch.long)
        if model.encoder is None:
            ids = torch.cat([source, before], 1)
            segments = torch.cat([torch.zeros_like(source), torch.ones_like(before)], 1)
            logits = model(ids, segments=segments).logits[0, -1]
        else:
            ids = torch.cat([torch.tensor([[model.config.pad_id]]), before], 1)
            logits = model(ids, encoder_batch=Batch.padded(source)).logits[0, -1]
        total -= float(logits.log_softmax(-1)[token])
    return total, len(target)


# Learning

@pytest.mark.parametrize("kind", KINDS)
def test_learns_to_turn_strings_round(kind):
    task = make(kind, layers=1, hidden_size=48, attention_heads=4, position="learned", max_positions=16)
    unseen = [one for one in turned(150, seed=9, most=3) if len(one.source) == 3]
    train = [one for one in turned(800, most=3) if one.source not in {other.source for other in unseen}]
    before = task.evaluate(unseen, progress=False)
    task.fit(train, options=Options(steps=100, batch_size=32, learning_rate=1e-2), progress=False)
    figures = task.evaluate(unseen, progress=False)
    assert before["exact"] < 0.1 and figures["exact"] > 0.9 and figures["loss"] < 0.2, figures
    assert figures["rouge1"] >= figures["rougeL"] > 0.95 and figures["rouge"] > 0.9, figures
    beams = task.evaluate(unseen, beams=3, progress=False)
    assert beams["exact"] > 0.9 and beams["loss"] == figures["loss"]
    liars = [Pair(one.source, one.source + "甲") for one in unseen]
    assert task.evaluate(liars, progress=False)["exact"] == 0.0     # planted: wrong targets are seen


# What is trained is what is decoded

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 17])
def test_loss_is_that_of_one_token_at_a_time(kind, size):
    task, pairs = sharp(make(kind)), turned(17, seed=4)
    features = task.encode(pairs)
    total = count = 0.0
    for first in range(0, len(features), size):
        part, number = cross_entropy(task.model, task.collate(features[first : first + size]))
        total, count = total + float(part), count + float(number)
    sums = [naive(task, pair) for pair in pairs]
    assert total == pytest.approx(sum(part for part, _ in sums), rel=1e-9) and count == sum(number for _, number in sums)
    assert task.evaluate(pairs, progress=False)["loss"] == pytest.approx(total / count, rel=1e-9)


@pytest.mark.parametrize(
    "fault",
    [
        lambda self: [0] * (len(self.source) - 1) + [1] * (len(self.target) + 1),
        lambda self: [0] * (len(self.source) + 1) + [1] * (len(self.target) - 1),
        lambda self: [0] * len(self),
    ],
    ids=["too early", "too late", "none"],
)
def test_a_shift_of_the_segments_is_found(monkeypatch, fault):
    task, pairs = sharp(make("unilm")), turned(3, seed=4)
    monkeypatch.setattr(Feature, "segments", property(fault))
    total, count = cross_entropy(task.model, task.collate(task.encode(pairs)))
    sums = [naive(task, pair) for pair in pairs]
    assert (float(total), float(count)) != (pytest.approx(sum(part for part, _ in sums), rel=1e-9), sum(number for _, number in sums))


def test_packed_is_padded():
    task = sharp(make("unilm"))
    features = task.encode(turned(13, seed=2))
    packed = cross_entropy(task.model, task.collate(features))
    for side in ("left", "right"):
        laid = pad(features, side=side)
        batch = Batch.padded(laid.ids, keep=laid.keep, segments=laid.segments)
        padded = cross_entropy(task.model, seq2seq.Rows(batch, None, *next_tokens(batch, segment=1)))
        assert float(packed[0]) == pytest.approx(float(padded[0]), rel=1e-12) and packed[1] == padded[1]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_have_the_loss_of_training(kind):
    """The score of what is written, by cache and steps, is minus the loss of the same tokens as a target."""
    task = sharp(make(kind))
    texts = [one.source for one in turned(11, seed=3)]
    answers = task.predict(texts, progress=False)
    assert len({one.ended for one in answers}) == 2
    for answer, text in zip(answers, texts, strict=True):
        target = task.tokenizer.encode(answer.text, special=False).ids + [task.tokenizer.eos_id] * answer.ended
        feature = Feature(task.tokenizer.encode(text, max_length=9).ids, target)
        total, _ = cross_entropy(task.model, task.collate([feature]))
        assert float(total) == pytest.approx(-answer.score, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_order_and_batches_make_no_difference(kind, beams):
    task = sharp(make(kind))
    texts = [one.source for one in turned(7, seed=3)] + ["", "甲" * 30]
    alone = [task.predict([text], beams=beams, progress=False)[0] for text in texts]
    together = task.predict(texts, beams=beams, batch_size=4, progress=False)
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], rel=1e-9)
    streamed = task.stream((text for text in texts), beams=beams, batch_size=1)
    assert next(streamed).text == alone[0].text and len(list(streamed)) == len(texts) - 1


def without_end(logits, tokens):
    return logits.index_fill(1, torch.tensor([3]), -torch.inf)


def test_more_beams_score_no_worse_and_processors_are_obeyed():
    task, text = sharp(make("unilm")), ["甲乙丙丁"]
    assert task.tokenizer.eos_id == 3
    greedy, wide = (task.predict(text, beams=beams, progress=False)[0] for beams in (1, 32))
    assert wide.score >= greedy.score
    endless = task.predict(text, processors=[without_end], progress=False)[0]
    assert not endless.ended and endless.score < greedy.score
    assert not task.predict(text, processors=[without_end], beams=3, max_new=1, progress=False)[0].ended


def test_a_processor_of_each_text_stays_with_its_text():
    """Short and long texts are sorted before they are batched; each is answered out of its own letters."""
    task = sharp(make("unilm"))
    texts = ["甲乙", "丙丁戊己庚", "辛", "乙丙丁"] * 3
    sources = task.tokenizer.encode_batch(texts, special=False)

    def copy(some: slice = slice(None)) -> CopyOnly:
        return CopyOnly([one.ids for one in sources[some]], n=1, limits=Limits(max_new=7, ends=(task.tokenizer.eos_id,)))

    alone = [task.predict([text], processors=[copy(slice(at, at + 1))], progress=False)[0] for at, text in enumerate(texts)]
    assert all(set(answer.text) <= set(text) for answer, text in zip(alone, texts, strict=True)) and any(one.text for one in alone)
    for beams, batch_size in ((1, 1), (1, 5), (3, 5), (1, 32)):
        found = task.predict(texts, beams=beams, batch_size=batch_size, processors=[copy()], progress=False)
        assert all(set(answer.text) <= set(text) for answer, text in zip(found, texts, strict=True))
        if beams == 1:
            assert [one.text for one in found] == [one.text for one in alone]
    many = [text for text in texts for _ in range(2)]                # more than one window of 16 batches
    each = CopyOnly([one.ids for one in task.tokenizer.encode_batch(many, special=False)], n=1, limits=copy().limits)
    assert [one.text for one in task.stream(iter(many), batch_size=1, processors=[each])] == [one.text for one in alone for _ in range(2)]
    for wrong in (texts[:3], texts * 2, iter(texts[:3]), iter(texts * 2)):
        with pytest.raises(ConfigError, match="12"):
            list(task.stream(wrong, processors=[copy()]))


@pytest.mark.parametrize("name", ["self_terminating", "non_monotone"])
def test_a_head_with_an_ending_writes_but_has_no_softmax_s_loss(name):
    task, pairs = make("unilm"), turned(5)
    task.model.set_heads([{"name": "lm", "ending": {"name": name, "epsilon": 0.02, "end": task.tokenizer.eos_id}}])
    assert len(task.predict(["甲"], progress=False)) == 1
    for call in (lambda: task.fit(pairs), lambda: task.fit(pairs, pairs, loss=sparse), lambda: task.evaluate(pairs)):
        with pytest.raises(ConfigError, match=r"has an ending \(\w+\).*losses\.termination, or take a head without ending"):
            call()
    task.fit(pairs, loss=sparse, options=Options(steps=1), progress=False)     # a loss of one's own may know the ending


# Cuts

def test_sources_are_cut_on_the_right_and_targets_counted(caplog):
    task = make("unilm")
    with caplog.at_level(logging.WARNING, "fishpaw"):
        long, short, whole = task.encode([Pair("甲乙丙丁戊己庚辛", "乙" * 9), Pair("丙", "丁"), Pair("丙", "戊" * 6)])
    words, end = task.tokenizer, task.tokenizer.eos_id
    assert words.decode(long.source) == "甲乙丙丁戊己庚" and len(long.source) == 9 and long.source[-1] == end
    assert long.target == words.encode("乙" * 7, special=False).ids      # no end is taught where it was cut
    assert short.target[-1] == end and len(short.target) == 2 and len(whole.target) == 7 and whole.target[-1] == end
    assert caplog.messages == ["1 of 3 targets have more than 7 tokens (max_new): the rest is left out"]
    assert len(long) == 16 and long.segments == [0] * 9 + [1] * 7 and len(long.ids) == 16


def test_positions_bound_both_lengths():
    fixed = {"position": "learned", "max_positions": 12, "family": "bert"}
    task = make("unilm", **fixed)
    assert (task.max_length, task.max_new) == (5, 7)
    assert max(len(one) for one in task.encode([Pair("甲" * 20, "乙" * 20)])) == 12
    task.predict(["甲" * 20], progress=False)
    task.predict(["甲" * 20], max_new=9, progress=False)
    with pytest.raises(ConfigError, match="10 new tokens, but the model has 12 positions"):
        task.predict(["甲"], max_new=10, progress=False)
    with pytest.raises(ConfigError, match="64 new tokens, but the model has 12 positions"):
        Seq2Seq(task.model, task.tokenizer)
    both = make("encoder-decoder", **fixed)
    assert both.max_length == 9
    both.predict(["甲" * 20], max_new=9, progress=False)


# Runs

@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    task = sharp(make(kind))
    task.model.float()
    task.save(tmp_path / "task")
    again = Seq2Seq.load(tmp_path / "task")
    assert (again.max_length, again.max_new) == (9, 7)
    texts = [one.source for one in turned(5, seed=8)]
    before, after = task.predict(texts, progress=False), again.predict(texts, progress=False)
    assert [one.text for one in after] == [one.text for one in before] and len({one.text for one in after}) > 1
    assert [one.score for one in after] == pytest.approx([one.score for one in before], rel=1e-5)
    assert Seq2Seq.load(tmp_path / "task", max_new=5).max_new == 5
    settings = json.loads((tmp_path / "task" / "task.json").read_text(encoding="utf-8"))
    assert settings == {"task": "seq2seq", "max_length": 9, "max_new": 7}


def test_a_damaged_setting_is_named(tmp_path):
    make("unilm").save(tmp_path / "task")
    (tmp_path / "task" / "task.json").write_text('{"task": "seq2seq", "max_new": "7"}', encoding="utf-8")
    (tmp_path / "task" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="task.json doesn't hold the settings of seq2seq"):
        Seq2Seq.load(tmp_path / "task")


@pytest.mark.parametrize("monitor", ["-loss", "rouge"])
def test_a_run_goes_on_where_it_stopped(tmp_path, monitor):
    options = Options(steps=6, batch_size=8, learning_rate=1e-2, evaluate_every=3, log_every=1, save_every=1)
    records: list[dict] = []
    whole = make("unilm").fit(turned(40), turned(5, 3), options=options, out=tmp_path / "a", monitor=monitor, progress=False,
                              report=records.append)
    evaluated = [one for one in records if one["event"] == "evaluate"]
    assert len(evaluated) == 2 and ("rouge" in evaluated[0]) == (monitor != "-loss") and all("loss" in one for one in evaluated)

    def stop(record: dict) -> None:
        if record["event"] == "step" and record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("unilm").fit(turned(40), turned(5, 3), options=options, out=tmp_path / "b", monitor=monitor, progress=False, report=stop)
    task = make("unilm")
    rest = task.fit(turned(40), turned(5, 3), options=options, out=tmp_path / "b", monitor=monitor, progress=False)
    assert rest.resumed_from == 3 and (rest.best, rest.step) == (whole.best, 6)
    name = "model/model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(CheckpointError, match="dev was"):
        task.fit(turned(40), turned(6, 3), options=options, out=tmp_path / "b", monitor=monitor, progress=False)
    with pytest.raises(CheckpointError, match="starting weights was"):
        make("unilm", seed=2).fit(turned(40), turned(5, 3), options=options, out=tmp_path / "b", monitor=monitor, progress=False)


def sparse(model, rows, *, k=2):
    return sparse_cross_entropy(model(rows.batch, encoder_batch=rows.encoder_batch, logits_at=rows.at).logits, rows.targets, k=k)


def test_another_loss_is_another_run(tmp_path):
    options = Options(steps=1, batch_size=8)
    task = make("unilm")
    task.fit(turned(8), options=options, out=tmp_path, loss=partial(sparse, k=3), progress=False)
    with pytest.raises(CheckpointError, match="loss was"):
        make("unilm").fit(turned(8), options=options, out=tmp_path, loss=sparse, progress=False)


# From a checkpoint

def test_an_encoder_becomes_a_unilm(pretrained):
    task = Seq2Seq.load(pretrained("bert"), max_length=20, max_new=9)
    assert task.model.mask.clock == "unilm" and list(task.model.heads) == ["mlm"] and task.model.config.segments == 2
    (answer,) = task.predict(["今天气好"], progress=False)
    assert answer.ended or len(task.tokenizer.encode(answer.text).ids) <= 11
    rows = task.collate(task.encode([Pair("今天", "好"), Pair("我们去公园", "公园玩")]))
    assert rows.targets.tolist().count(task.tokenizer.eos_id) == 2 and rows.encoder_batch is None


def test_heads_are_needed(pretrained, tiny, tmp_path):
    task = Classify.load(pretrained("bert"), labels=["a", "b"])
    task.model.set_heads([head for head in task.model.config.heads if head not in ("mlm", "nsp")])
    task.save(tmp_path / "classifier")
    with pytest.raises(ConfigError, match="no head that scores tokens"):
        Seq2Seq.load(tmp_path / "classifier", max_new=9)
    began = Seq2Seq.load(tmp_path / "classifier", max_new=9, changes={"heads": ["mlm"]})
    assert list(began.model.heads) == ["mlm"] and (began.max_length, began.max_new) == (22, 9)
    with pytest.raises(ConfigError, match="mask is 'causal'"):
        Seq2Seq.load(pretrained("bert"), max_new=9, mask="causal")
    with pytest.raises(ConfigError, match="mask is 'full'"):
        Seq2Seq(Transformer(tiny(heads=("mlm",))), began.tokenizer)


@pytest.mark.parity
def test_the_loss_of_a_t5_is_that_of_transformers(pipeline, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = pipeline("$A </s>")
    torch.manual_seed(2)
    sizes = {"d_model": 21, "d_kv": 5, "d_ff": 17, "num_heads": 3, "num_layers": 2, "decoder_start_token_id": 0, "dropout_rate": 0.0}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=tokenizer.size, **sizes)).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.6)
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    task = Seq2Seq.load(tmp_path, max_length=11, max_new=7)
    pairs = [Pair("今天天气好", "天气"), Pair("我们去公园玩吧", "去玩"), Pair("", "好")]
    total = count = 0.0
    with torch.no_grad():
        for one in pairs:
            labels = torch.tensor([tokenizer.encode(one.target).ids])
            said = theirs(input_ids=torch.tensor([tokenizer.encode(one.source).ids]), labels=labels).loss
            total, count = total + float(said) * labels.numel(), count + labels.numel()
    assert task.evaluate(pairs, progress=False)["loss"] == pytest.approx(total / count, rel=1e-5)


# Figures and mistakes

def test_figures_are_of_characters_without_blanks_or_of_what_is_asked_for(monkeypatch):
    task = make("unilm")
    said = iter([seq2seq.Answer("CPM 你好", -1.0, True), seq2seq.Answer("x = 3 + 5", -1.0, True)] * 2)
    monkeypatch.setattr(Seq2Seq, "predict", lambda *_, **__: [next(said), next(said)])
    pairs = [Pair("甲", "cpm你好 "), Pair("乙", "x=3+5")]
    assert task.evaluate(pairs)["exact"] == 1.0 and plain(" A b\n") == "ab"
    assert task.evaluate(pairs, split=str.split)["exact"] == 0.0


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda task: task.predict("甲"), DataError, "one string"),
        (lambda task: task.predict(["甲"], beams=0), ConfigError, "beams is 0"),
        (lambda task: task.predict(["甲"], batch_size=0), ConfigError, "batch_size is 0"),
        (lambda task: task.predict(["甲"], max_new=0), ConfigError, "max_new is 0"),
        (lambda task: task.evaluate([]), DataError, "nothing to evaluate"),
        (lambda task: task.evaluate([("甲", "乙")]), DataError, "Pair 0 is a tuple"),
        (lambda task: task.fit([]), DataError, "no pair in train"),
        (lambda task: task.fit(turned(3), []), DataError, "no pair in dev"),
        (lambda task: task.fit(turned(3), monitor="loss"), ConfigError, "monitor is 'loss'"),
        (lambda task: Seq2Seq(task.model, task.tokenizer, max_length=2), ConfigError, "max_length is 2"),
        (lambda task: Seq2Seq.new(turned(3), seed=-1), ConfigError, "seed is -1"),
    ],
)
def test_mistakes_are_named(call, error, says):
    with pytest.raises(error, match=says):
        call(make("unilm"))


def test_a_start_is_the_same_for_the_same_seed():
    one, same, other = make("unilm", seed=3), make("unilm", seed=3), make("unilm", seed=4)
    assert torch.equal(one.model.table, same.model.table) and not torch.equal(one.model.table, other.model.table)


# The pages

@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_runs(language, pretrained, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / language / "seq2seq.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("train.tsv", "dev.tsv"):
        Path(name).write_text("今天气好\t天气\n我们去公园玩吧\t去公园\n", encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        block = block.replace("hfl/chinese-roberta-wwm-ext", str(pretrained("bert"))).replace("max_new=32", "max_new=5")
        exec(block.replace("epochs=10", "epochs=1").replace("steps=100", "steps=2"), names)
    assert Seq2Seq.load("titles").max_new == 5 and (tmp_path / "run" / "model").is_dir()
    said = capsys.readouterr().out.split("\n")
    assert "'exact': " in said[0]
    for promised, printed in zip(re.findall(r"print\(rouge.*# ([\d.]+)", page), said[-4:-2], strict=True):
        assert promised == f"{float(printed):.4f}"
