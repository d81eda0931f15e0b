"""Pretraining: the loss of a batch by a loop over its rows, any cut into batches, a killed run, what is refused, learning on the reviews.

    python tests/tasks/test_pretrain.py OUT SHARDS KILLS      trains in OUT, killed by SIGKILL that often on the way
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.data.shards import Document, Pieces, Shards, write
from fishpaw.demo import reviews
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.objectives import NAMES, Autoencoding, Contrastive, Masked, NextSentence, NextToken, SpanCorruption, UniLM
from fishpaw.tasks.pretrain import Pretrain, fitting, sized, special_of
from fishpaw.text.learn import characters
from fishpaw.text.vocab import SPECIAL, Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.options import Options
from fishpaw.weights.load import load_model

torch.set_num_threads(1)
TEXTS = [one.text for one in reviews(None).train]
TOKENIZER = WordPiece(characters(TEXTS, least=1))
UNILM = {Masked(): 0.35, UniLM(): 0.15, NextToken(): 0.15, Contrastive(): 0.35}
BERT = {Masked(): 0.3, NextSentence(): 0.7}
TTA = {"stream": "positions", "mask": {"name": "full", "exclude_self": True}}


def shape(**changes):
    return sized(1, 16).change({"vocab_size": TOKENIZER.size, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.4, **changes})


def encoder_decoder():
    inner = ModelConfig(vocab_size=1, hidden_size=12, layers=1, attention_heads=2, intermediate_size=24, position="rotary", dropout=0.0,
                        attention_dropout=0.0)
    return shape(hidden_size=12, attention_heads=2, mask="causal", heads=("lm",), encoder=inner.change({"vocab_size": TOKENIZER.size}))


def task(objectives, config=None, **options):
    return Pretrain.new(TOKENIZER, objectives, config=config or shape(), **{"length": 32, **options})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    joined = ["".join(TEXTS[at : at + 1 + at % 5]) for at in range(0, 100, 2)]
    encoded = (Document(one.ids) for one in TOKENIZER.encode_batch(joined, special=False))
    return write(encoded, tmp_path_factory.mktemp("shards") / "x", vocab_size=TOKENIZER.size)


KINDS = {"unilm": (UNILM, None), "bert": (BERT, None), "t-ta": ({Autoencoding(): 1.0}, None), "gpt": ({NextToken(): 1.0}, None),
         "spans": ({SpanCorruption(): 1.0}, None), "encoder-decoder": ({SpanCorruption(): 0.5, UniLM(): 0.5}, encoder_decoder())}


@pytest.fixture(params=KINDS)
def kind(request):
    objectives, config = KINDS[request.param]
    made = task(objectives, config)
    made.model.double()
    return made


# The loss

def cross_entropy(logits, target):
    values = logits.tolist()
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values)) - values[target]


def naive(task, pieces):
    """Row by row, each alone in the model, question by question; pairs by a loop over all others."""
    total = count = 0.0
    vectors, pairs, model = [], [], task.model
    for piece in pieces:
        objective = task.objectives[task._chosen(piece)]
        for row in objective.rows(piece, task.special):
            given = {"padding": None}
            if model.encoder is None:
                given["segments"] = None if model.mask.clock == "causal" else torch.from_numpy(row.segments)[None]
            else:
                from fishpaw.contracts import Batch
                given["encoder_batch"] = Batch.padded(torch.from_numpy(row.source)[None])
            with torch.no_grad():
                output = model(torch.from_numpy(row.ids)[None], **given)
            for at, target in zip(row.at.tolist(), row.targets.tolist(), strict=True):
                total += objective.weight * cross_entropy(output.logits[0, at], target)
                count += objective.weight
            if row.follows is not None:
                total += objective.weight * objective.sentence * cross_entropy(output.nsp[0], 0 if row.follows else 1)
                count += objective.weight * objective.sentence
            if row.view:
                vectors.append(output.pooled[0])
        if isinstance(objective, Contrastive) and len(vectors) > 2 * len(pairs):
            pairs.append((objective, vectors[-2], vectors[-1]))
    for i, (objective, one, other) in enumerate(pairs):
        for mine, index in ((one, 2), (other, 1)):
            scores = torch.stack([torch.cosine_similarity(mine, pair[index], dim=0) / objective.temperature for pair in pairs])
            total += objective.weight * cross_entropy(scores, i) / 2
        count += objective.weight
    return total, count


def test_the_loss_of_a_batch_is_the_sum_over_its_rows_and_questions(kind, shards):
    pieces = kind.pieces(shards, seed=3)
    chosen = [pieces.visit(index, 1) for index in range(0, len(pieces), 6)]
    total, count = kind.loss(kind.model.eval(), kind.collate(chosen))
    expected = naive(kind, chosen)
    assert float(total.detach()) == pytest.approx(expected[0], rel=1e-9) and float(count) == pytest.approx(expected[1], rel=1e-6)
    shifted = kind.collate(chosen)                                   # the planted fault: each question a place too late
    late = kind.loss(kind.model, replace(shifted, at=(shifted.at + 1).clamp_max(len(shifted.batch.ids) - 1)))[0]
    assert abs(float(late.detach()) / expected[0] - 1) > 1e-6   # an untrained model tells places apart by little


def test_any_cut_into_batches_gives_the_same_sums(kind, shards):
    if any(isinstance(one, Contrastive) for one in kind.objectives):
        kind = task({one: share for one, share in UNILM.items() if not isinstance(one, Contrastive)})
        kind.model.double()
    pieces, model = kind.pieces(shards, seed=3), kind.model.eval()
    chosen = [pieces.visit(index, 2) for index in range(0, len(pieces), 5)]
    found = []
    for size in (1, 7):
        parts = [kind.loss(model, kind.collate(chosen[at : at + size])) for at in range(0, len(chosen), size)]
        found.append([sum(float(part[index].detach()) for part in parts) for index in (0, 1)])
    assert all(one == pytest.approx(found[0], rel=1e-9) for one in found)


def test_a_batch_that_asks_nothing_is_nothing(shards, tmp_path):
    made = task({UniLM(): 1.0})
    lone = Pieces(write([Document([7])], tmp_path / "x", vocab_size=TOKENIZER.size), 20)
    total, count = made.loss(made.model, made.collate([lone[0]]))
    total.backward()
    assert float(total.detach()) == float(count) == 0 and total.requires_grad
    made = task({UniLM(): 1.0}, encoder_decoder())
    assert float(made.loss(made.model, made.collate([lone[0]]))[1]) == 0
    result = task({Masked(): 1.0}).fit(lone.shards, options=Options(steps=9, batch_size=1))          # mostly without a question: goes on
    assert result.step == 9


def test_shares_are_those_asked_for_and_drawn_anew_each_epoch(shards):
    made = task(UNILM)
    pieces = made.pieces(shards)
    chosen = [[made._chosen(pieces.visit(index, epoch)) for index in range(len(pieces))] for epoch in range(20)]
    number = 20 * len(pieces)
    for kind, share in enumerate(made.shares):
        found = sum(one == kind for epoch in chosen for one in epoch)
        assert abs(found / number - share) < 5 * (share * (1 - share) / number) ** 0.5
    assert chosen[0] != chosen[1] and chosen[0] == [made._chosen(pieces[index]) for index in range(len(pieces))]
    assert Pretrain(made.model, TOKENIZER, {Masked(): 2, UniLM(): 6}).shares == (0.25, 0.75)


def test_evaluation_says_what_was_asked(shards):
    for objectives, names in ((UNILM, {"masked", "unilm", "nexttoken", "contrastive"}), (BERT, {"masked", "nextsentence", "follows"})):
        made = task(objectives, shape(dropout=0.5))
        read = made.pieces(shards)
        figures = made.evaluate(made.model.train(), pieces=[read[index] for index in range(40)])
        assert set(figures) == {"loss"} | {f"{name}_{what}" for name in names for what in ("loss", "accuracy")}
        assert figures == made.evaluate(made.model, pieces=[read[index] for index in range(40)])     # no dropout
    asked = made.collate(list(read[:40]))
    with torch.no_grad():
        output = made.model.eval()(asked.batch, logits_at=asked.at)
    right = [int(output.nsp[row].argmax()) == (0 if follows else 1) for row, follows in zip(asked.rows, asked.follows, strict=True)]
    by_rows = made.evaluate(made.model, pieces=list(read[:40]), rows=40)
    assert by_rows["follows_accuracy"] == pytest.approx(sum(right) / len(right))


# Models and vocabularies

def test_a_model_becomes_what_its_objectives_need():
    plain = shape()
    assert fitting(plain, [Masked()]) == {"heads": ("mlm",)}
    assert fitting(plain, [NextToken()]) == {"mask": "causal", "heads": ("mlm",)}
    assert fitting(plain, [NextToken(), Masked()])["mask"] == fitting(plain, [SpanCorruption()])["mask"] == "unilm"
    assert fitting(plain, [Contrastive()])["heads"] == ({"name": "pooler", "activation": "linear"},)
    assert fitting(plain, [NextSentence(), Contrastive()])["heads"] == ("mlm", "pooler", "nsp")
    assert fitting(plain, [Autoencoding()]) == {**TTA, "heads": ("mlm",)}
    assert fitting(encoder_decoder(), [SpanCorruption()]) == {}
    assert fitting(shape(**TTA), [NextToken()]) == {"mask": "causal", "stream": "tokens", "heads": ("mlm",)}
    assert fitting(shape(**TTA), [Masked()]) == {"mask": "full", "stream": "tokens", "heads": ("mlm",)}
    assert fitting(shape(mask="unilm", heads=("lm",)), [NextToken(), Masked()])["heads"] == ("lm", "mlm")
    for never in ([NextSentence(), NextToken()], [Autoencoding(), Masked()], [UniLM(), Autoencoding()]):
        with pytest.raises(ConfigError, match=f"{type(never[0]).__name__}, {type(never[1]).__name__} together"):
            fitting(plain, never)


@pytest.mark.parametrize("objective, changes, said", [
    (NextToken(), {}, "mask 'full'"), (UniLM(), {"mask": "causal"}, "mask 'causal'"), (NextSentence(), {"mask": "unilm"}, "mask 'unilm'"),
    (Masked(), TTA, "stream 'positions'"), (Autoencoding(), {}, "stream 'tokens'"),
    (Autoencoding(), {"mask": {"name": "full", "exclude_self": True}}, "stream 'tokens'"), (NextSentence(), {}, "head pooler"),
    (Contrastive(), {}, "head pooler"), (Masked(), {"heads": ("lm",), "tie_embeddings": True}, "head mlm"),
])  # fmt: skip
def test_what_a_model_can_not_answer_is_refused_by_name(objective, changes, said):
    model = Transformer(shape(**{"heads": ("mlm",), **changes}))
    with pytest.raises(ConfigError, match=f"{type(objective).__name__}.*{said}"):
        Pretrain(model, TOKENIZER, {objective: 1.0})


@pytest.mark.parametrize("objectives", [{}, {Masked(): 0.0}, {Masked(): -1}, {Masked(): math.nan}, {Masked(): 1, Masked(words=True): 1}])
def test_shares_that_are_none_are_refused(objectives):
    with pytest.raises(ConfigError):
        task(objectives or {Masked(): 0})


def test_texts_longer_than_the_positions_are_refused():
    with pytest.raises(ConfigError, match="length is 32, but the model has 31"):
        task({Masked(): 1.0}, shape(position="learned", max_positions=31))
    with pytest.raises(ConfigError, match="length is 7"):
        task({Masked(): 1.0}, length=7)


def test_special_tokens_are_found_and_missed():
    bert = WordPiece(Vocab((*SPECIAL, "[unused2]", "[unused1]", "。", "鱼", "!", "…", "熊掌", "##也")))
    found = special_of(bert)
    assert (found.cls, found.sep, found.mask, found.ordinary, found.sentinels) == (2, 3, 4, 5, (6, 5))
    assert found.stops == {7, 9, 10} and found.vocab_size == 13
    bare = WordPiece(Vocab((*SPECIAL[:4], "鱼", "也", "可", "以", "。")))
    assert special_of(bare).mask is None and special_of(bare).sentinels == ()
    for objective in (Masked(), SpanCorruption(), NextSentence()):
        with pytest.raises(ConfigError, match=r"\[MASK\]"):
            Pretrain.new(bare, {objective: 1.0}, config=shape())
    Pretrain.new(bare, {NextToken(): 1.0}, config=shape())


def test_other_vocabularies_are_refused(shards, tmp_path):
    made = task({Masked(): 1.0})
    small = write([Document([5, 6])], tmp_path / "small", vocab_size=17)
    same_size = write([Document([5, 6])], tmp_path / "same", vocab_size=TOKENIZER.size, facts={"vocabulary": "another"})
    for other in (small, same_size):
        with pytest.raises(DataError, match="another vocabulary"):
            made.pieces(other)
    assert len(made.pieces(shards)) > 50


def test_a_checkpoint_goes_on_with_what_it_lacks(pretrained, tmp_path):
    made = Pretrain.load(pretrained("bert"), {Masked(): 1, UniLM(): 1, Contrastive(): 1}, length=16)
    assert made.model.mask.clock == "unilm" and "pooler" in made.model.heads
    before = load_model(pretrained("bert")).table
    assert torch.equal(made.model.table, before)
    again = Pretrain.load(pretrained("bert"), {Contrastive(): 1}, changes={"dropout": 0.3}, length=16)
    assert again.model.config.dropout == 0.3 and again.model.mask.clock == "full"
    gpt = Pretrain.load(pretrained("gpt2"), {NextToken(): 1}, length=16)                             # one token begins and ends a text
    assert gpt.special.cls is None and gpt.special.sep == gpt.tokenizer.eos_id
    read = gpt.pieces(write([Document([3, 4, 5])], tmp_path / "x", vocab_size=gpt.tokenizer.size))
    asked = gpt.collate([read[0]])
    assert asked.batch.ids.tolist() == [gpt.special.sep, 3, 4, 5, gpt.special.sep] and asked.batch.segments is None
    assert float(gpt.loss(gpt.model, asked)[1]) == 4



# Training

OPTIONS = Options(steps=9, token_budget=300, learning_rate=3e-3, evaluate_every=4, save_every=2, log_every=1, seed=1)


def train(out, shards, *, seed=0, resume=True, options=OPTIONS, report=None):
    made = task(UNILM, shape(dropout=0.1), seed=seed)
    return made, made.fit(shards, shards, options=options, out=out, evaluated=12, progress=False, resume=resume, report=report)


def test_a_killed_run_ends_with_the_same_bits(shards, tmp_path):
    _, result = train(tmp_path / "whole", shards)
    command = [sys.executable, "-W", "error", __file__, str(tmp_path / "killed"), str(shards.folder), "2"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) == {"kills": 2}, done.stderr[-2000:]
    for name in ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", "best/model.safetensors", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    _, other = train(tmp_path / "other", shards, seed=1)             # the planted fault: other weights to begin with
    assert (tmp_path / "other" / "model" / "model.safetensors").read_bytes() != (tmp_path / "whole/model/model.safetensors").read_bytes()
    assert result.best != other.best
    with pytest.raises(CheckpointError, match="another run"):
        Pretrain.new(TOKENIZER, {Masked(): 1.0}, config=shape(), length=32).fit(shards, options=OPTIONS, out=tmp_path / "whole")


def test_it_learns_from_the_reviews(shards, tmp_path):
    made = task(UNILM, sized(1, 32).change({"dropout": 0.0}))
    pieces = made.pieces(shards)[:40]
    first = made.evaluate(made.model, pieces=pieces)
    options = replace(OPTIONS, steps=30, token_budget=1000, learning_rate=1e-2, evaluate_every=None, save_every=None, log_every=50)
    result = made.fit(shards, options=options, out=tmp_path / "run")
    last = made.evaluate(made.model, pieces=pieces)
    for name in ("masked_loss", "unilm_loss", "nexttoken_loss"):
        assert last[name] < first[name] - 0.5
    assert last["contrastive_loss"] < first["contrastive_loss"] and result.history[-1]["train_loss"] < first["loss"] - 0.5
    assert load_model(tmp_path / "run" / "model").mask.clock == "unilm"


@pytest.mark.parametrize("objectives", [BERT, {Autoencoding(): 1.0}, {SpanCorruption(): 1.0}, {NextToken(): 1.0}],
                         ids=["bert", "t-ta", "spans", "gpt"])
def test_every_other_kind_learns_and_is_saved(objectives, shards, tmp_path):
    made = task(objectives, sized(1, 32).change({"dropout": 0.0}))
    options = Options(steps=20, token_budget=500, learning_rate=1e-2, evaluate_every=4, log_every=50)
    result = made.fit(shards, options=options, out=tmp_path / "run")
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"] - 0.05
    again = load_model(tmp_path / "run" / "model")
    assert again.config == made.model.config and torch.equal(again.table, made.model.table)


# The pages

@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_runs(language, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / language / "pretraining.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block.replace("steps=20", "steps=3").replace("sized(2, 64)", "sized(1, 16)"), names)
    said = capsys.readouterr().out
    assert "'masked_accuracy': " in said and "'contrastive_loss': " in said and (tmp_path / "run" / "model").is_dir()
    for name, kind in NAMES.items():
        assert f"| `{name}` | `{kind.__name__}(" in page
        for option, value in re.findall(r"(\w+)=([\w.]+)", re.search(rf"`{kind.__name__}\(([^)]*)\)`", page)[1]):
            assert str(getattr(kind(), option)) == value


def killed(out, folder, kills):
    """Children that vanish at a step, one after another; then one that may end. The parent computes nothing: no threads to lose."""
    torch.optim.AdamW([torch.zeros(1)])                              # imports torch._dynamo: a second that each child would pay
    for number in range(kills + 1):
        if (pid := os.fork()) == 0:
            def vanish(record, step=4 + 3 * number if number < kills else math.inf):
                if record["event"] == "step" and record["step"] >= step:
                    os.kill(os.getpid(), signal.SIGKILL)

            train(Path(out), Shards(folder), report=vanish)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != (-signal.SIGKILL if number < kills else 0):
            return 1
    print(json.dumps({"kills": kills}))
    return 0


def test_texts_that_nothing_is_asked_of_are_no_measure(tmp_path):
    write([Document([1, 1, 1])], tmp_path / "dev", vocab_size=TOKENIZER.size)      # [UNK], which is never hidden
    write([Document([7, 8, 9] * 9)], tmp_path / "train", vocab_size=TOKENIZER.size)
    task = Pretrain.new(TOKENIZER, {Masked(): 1}, config=shape(), length=32)
    with pytest.raises(DataError, match="Nothing is asked of"):
        task.fit(Shards(tmp_path / "train"), Shards(tmp_path / "dev"), options=Options(steps=1, batch_size=1), progress=False)


def test_the_log_counts_the_tokens_that_are_read(tmp_path):
    draw = numpy.random.default_rng(3)
    shards = write([Document(draw.integers(5, TOKENIZER.size, 120)) for _ in range(8)], tmp_path / "train", vocab_size=TOKENIZER.size)
    task = Pretrain.new(TOKENIZER, {Contrastive(): 1}, config=shape(), length=122)
    records = []
    task.fit(shards, options=Options(steps=2, batch_size=8, log_every=1), progress=False, report=records.append)
    first = next(record for record in records if record["event"] == "step")
    asked = task.collate(list(task.pieces(shards)))
    assert sum(asked.lengths) == len(asked.batch.ids)                # two short texts a piece
    assert first["tokens_per_second"] * first["seconds"] == pytest.approx(sum(asked.lengths))
    assert sum(asked.lengths) < 0.8 * 8 * 120                        # the planted fault: the pieces counted instead


if __name__ == "__main__":
    sys.exit(killed(sys.argv[1], sys.argv[2], int(sys.argv[3])))
