"""Dialogue: one pass learns all replies, replies are the other speaker's, any causal model talks, and what is saved opens again."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import re
from pathlib import Path

import pytest
import torch

import fishpaw as fp
from fishpaw.config import ModelConfig
from fishpaw.data.conversations import Conversation
from fishpaw.decoding.scoring import score
from fishpaw.decoding.settings import Settings
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.dialogue import Dialogue, small
from fishpaw.tasks.turns import log_probabilities
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece

LETTERS = "今天气我们去公园玩吧房间前台很热情下次"
GREEDY = Settings()
TALK = ["今天气", "我们去", "公园玩吧房间", "前台"]


def following(first: str, turns: int) -> Conversation:
    """Each turn is the letter after the one before, twice."""
    at = LETTERS.index(first)
    return Conversation(tuple(LETTERS[(at + turn) % 17] * 2 for turn in range(turns)))


TOY = [following(letter, 2 + at % 3) for at, letter in enumerate(LETTERS[:17] * 3)]


def shape(**changes: object) -> ModelConfig:
    return small(1).change({"hidden_size": 16, "layers": 1, "attention_heads": 2, "intermediate_size": 24, "dropout": 0.0,
                            "attention_dropout": 0.0, **changes})  # fmt: skip


def talker(*, max_length: int = 64, **changes: object) -> Dialogue:
    """Random weights large enough for every segment and turn to matter."""
    task = Dialogue.new(TOY, config=shape(**{"init_std": 0.6, "layers": 2, **changes}), max_length=max_length, seed=3)
    task.model.double()
    return task


def unsaid(task: Dialogue) -> list[int]:
    """Special tokens but the end, which no reply holds."""
    return sorted(task.tokenizer.special_ids - {task.layout.end})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Dialogue:
    torch.set_num_threads(1)
    task = Dialogue.new(TOY, config=shape(hidden_size=32, init_std=0.2), max_length=40)
    task.fit(TOY, TOY[:17], options=fp.Options(steps=160, batch_size=17, learning_rate=0.01, evaluate_every=80))
    return task


@pytest.mark.parametrize("position", ["rotary", "nezha"])
def test_one_pass_gives_each_reply_the_probability_it_has_after_its_history_alone(position):
    task = talker(position=position)
    turns = task.layout.turns(TALK)
    (whole,) = log_probabilities(task.model, task.layout.pieces(turns, 64))
    parts = whole.split([len(turn) for turn in turns])
    for place in range(1, 4):
        prompts = task.prompts([TALK[:place]], max_new=16)
        ((alone,),) = score(task.stepper(place), prompts, [[turns[place]]])
        assert alone.log_probabilities == pytest.approx(parts[place].tolist(), abs=1e-10)
        ((wrong,),) = score(task.stepper(place + 1), prompts, [[turns[place]]])         # planted: the same speaker goes on
        assert abs(wrong.score - alone.score) > 0.1


def test_what_is_trained_is_the_mean_over_all_tokens_of_all_turns():
    task = talker()
    features = task.layout.pieces(task.layout.turns(TALK), 64)
    before = float(-torch.cat(log_probabilities(task.model, features)).mean())
    result = task.fit([Conversation(tuple(TALK))], alone=0.0, options=fp.Options(steps=1, batch_size=1, learning_rate=1e-9))
    assert result.loss == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("speaker", [0, 1])
def test_only_one_speaker_is_learned_from(speaker):
    task = talker()
    turns = task.layout.turns(TALK)
    parts = torch.cat(log_probabilities(task.model, task.layout.pieces(turns, 64))).split([len(turn) for turn in turns])
    talks = [Conversation(tuple(TALK)), Conversation(("今",))][: 1 + speaker]          # the second has nothing of speaker 1
    result = task.fit(talks, speaker=speaker, alone=0.0, options=fp.Options(steps=1, batch_size=2, learning_rate=1e-9))
    assert result.loss == pytest.approx(-float(torch.cat(parts[speaker::2]).mean()), abs=1e-6)


def test_replies_are_learned_alone_too_of_their_own_speaker():
    task = talker()
    turns = task.layout.turns(TALK)
    whole = log_probabilities(task.model, task.layout.pieces(turns, 64))
    orphans = log_probabilities(task.model, [task.layout.alone(turns, place, 64) for place in (1, 2, 3)])
    result = task.fit([Conversation(tuple(TALK))], alone=1.0, options=fp.Options(steps=1, batch_size=4, learning_rate=1e-9))
    assert result.loss == pytest.approx(-float(torch.cat([*whole, *orphans]).mean()), abs=1e-6)
    assert [task.layout.alone(turns, place, 64).segments for place in (0, 1)] == [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_reply_is_of_the_other_speaker(turns):
    """Greedy tokens are those of a full pass in which they have the segment that the last turn has not."""
    task = talker()
    history = TALK[:turns]

    def naive(segment: int) -> list[int]:
        one = task.encode(history, max_new=9)
        ids, segments = list(one.ids), list(one.segments)
        while len(ids) < len(one) + 9 and (len(ids) == len(one) or ids[-1] != task.layout.end):
            logits = task.model(torch.tensor([ids]), segments=torch.tensor([segments])).logits[0, -1]
            logits[unsaid(task)] = float("-inf")
            if len(ids) == len(one):
                logits[task.layout.end] = float("-inf")              # a reply has a token at least
            ids.append(int(logits.argmax()))
            segments.append(segment)
        return ids[len(one) :]

    ((found,),) = task.candidates([history], GREEDY, max_new=9)
    assert task.encode(history).segments[-1] == 1 - turns % 2
    assert list(found.tokens) == naive(turns % 2) != naive(1 - turns % 2)


@pytest.mark.parametrize("position", ["nezha", "rotary"])
def test_relative_positions_read_four_times_what_was_trained(position):
    trained = talker(position=position, max_length=16)
    far = Dialogue(trained.model, trained.tokenizer, max_length=64)
    talk = TALK * 3
    assert len(far.encode(talk, max_new=8)) > 48 and far.max_length == 64
    assert far.reply(talk, GREEDY, max_new=8) and far.evaluate([Conversation(tuple(talk)), TOY[0]], samples=3)["loss"] > 0


def test_a_learned_table_ends_where_it_ends():
    task = talker(position="learned", max_positions=20, max_length=64)
    assert task.max_length == 20 and len(task.encode(TALK * 3, max_new=8)) <= 12
    assert task.reply(TALK * 3, GREEDY, max_new=8)
    with pytest.raises(ConfigError, match="18 new tokens of 20 in all leave none"):
        task.reply(TALK, max_new=18)


def test_drawn_tokens_have_the_renormalised_probabilities_of_the_five_best():
    task = talker(init_std=0.3)
    draws = 4000
    one = task.encode(TALK, max_new=1)
    logits = task.model(torch.tensor([one.ids]), segments=torch.tensor([one.segments])).logits[0, -1].detach()
    logits[[task.layout.end, *unsaid(task)]] = float("-inf")
    best = logits.topk(5)
    (found,) = task.candidates([TALK], Settings(sample=True, top_k=5, n=draws), max_new=1, seed=1)
    counts = torch.tensor([sum(hypothesis.tokens[0] == token for hypothesis in found) for token in best.indices.tolist()])
    assert int(counts.sum()) == draws

    def chi_square(shares: torch.Tensor) -> float:
        return float(((counts - draws * shares) ** 2 / (draws * shares)).sum())

    assert chi_square(best.values.softmax(0)) < 23.5                 # 4 degrees of freedom, p = 1e-4
    assert chi_square((best.values * 0.5).softmax(0)) > 23.5         # planted: another temperature
    assert chi_square(logits.softmax(0)[best.indices]) > 23.5        # planted: not renormalised


def test_it_learns_and_measures_what_it_learned(trained):
    histories = [[one.turns[0]] for one in TOY[:17]]
    right = [reply == following(one[0][0], 2).turns[1] for one, reply in zip(histories, trained.predict(histories, GREEDY), strict=True)]
    assert sum(right) >= 16
    figures = trained.evaluate(TOY, samples=40)
    assert figures["perplexity"] == pytest.approx(torch.tensor(figures["loss"]).double().exp().item()) and figures["perplexity"] < 3
    assert figures["relevance"] > 0.9 and figures["relevance_mutual"] > 0.9 and 0 < figures["distinct_1"] < figures["distinct_2"] < 1
    assert trained.evaluate(TOY, samples=40) == figures              # seeded


@pytest.mark.parametrize("settings", [GREEDY, Settings(sample=True, top_k=5), Settings(contrastive_k=3), Settings(no_repeat_ngram=2)])
def test_streamed_is_the_reply(settings):
    task = talker()
    pieces = list(task.stream(TALK, settings, max_new=12, seed=5))
    assert "".join(pieces) == task.reply(TALK, settings, max_new=12, seed=5)


@pytest.mark.parametrize("settings", [GREEDY, Settings(sample=True), Settings(beams=3), Settings(contrastive_k=3)], ids=str)
def test_no_special_token_is_a_reply(settings):
    """A model that would say nothing but [PAD] and [CLS] says letters."""
    task = talker()
    with torch.no_grad():
        task.model.heads["mlm"].bias[unsaid(task)] = 100.0
    ((found, *_),) = task.candidates([TALK], settings, max_new=6, seed=2)
    assert not set(found.tokens) & set(unsaid(task)) and task.writer.decode(found)
    assert task.reply(TALK, settings, max_new=6, seed=2) == task.writer.decode(found)
    task.template = "{{ messages[0].content }}"                      # a template's special tokens are its own
    ((other, *_),) = task.candidates([TALK[:1]], settings, max_new=6, seed=2)
    assert set(other.tokens) & set(unsaid(task))


def test_a_fit_that_is_refused_leaves_the_template():
    task = talker()
    task.template, writer = TEMPLATE, task.writer
    for wrong in ({"alone": 2.0}, {"speaker": 3}, {"dev": []}):
        with pytest.raises((ConfigError, DataError)):
            task.fit(TOY, **wrong)
    with pytest.raises(DataError):
        task.fit([])
    assert task.template == TEMPLATE and task.writer is writer


@pytest.mark.parametrize("kind", ["self_terminating", "non_monotone"])
def test_a_head_with_an_ending_talks_but_is_not_trained_or_measured_as_a_softmax(kind):
    task = talker()
    task.model.set_heads([{"name": "lm", "ending": {"name": kind, "epsilon": 0.02, "end": task.layout.end}}])
    assert task.reply(TALK, max_new=5)
    for call in (lambda: task.fit(TOY), lambda: task.evaluate(TOY), lambda: log_probabilities(task.model, [task.encode(TALK)])):
        with pytest.raises(ConfigError, match=r"has an ending \((SelfTerminating|NonMonotone)\).*losses\.termination"):
            call()


def test_replies_do_not_depend_on_what_stands_beside_them():
    task = talker()
    histories = [TALK[:stop] for stop in (1, 2, 3, 4, 2)] + [[]]
    together = task.predict(histories, max_new=9, batch_size=2, seed=7)
    apart = task.predict(histories, max_new=9, batch_size=1, seed=7)
    assert together == apart and len(set(task.predict([TALK] * 8, seed=None))) > 1
    assert task.predict(histories, Settings(beams=3), max_new=9) == [task.reply(one, Settings(beams=3), max_new=9) for one in histories]


def test_what_is_saved_opens_and_goes_on(trained, tmp_path):
    trained.save(tmp_path / "task")
    again = Dialogue.load(tmp_path / "task")
    assert again.max_length == 40 and again.reply(["今今"], GREEDY) == trained.reply(["今今"], GREEDY)
    assert fp.tasks.Dialogue.load(tmp_path / "task", max_length=24).max_length == 24
    (tmp_path / "task" / "task.json").write_text('{"task": "dialogue", "max_length": "long"}', encoding="utf-8")
    (tmp_path / "task" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="task.json"):
        Dialogue.load(tmp_path / "task")


def test_a_run_goes_on_and_not_with_another_speaker_or_start(tmp_path):
    options = fp.Options(steps=4, batch_size=8)
    torch.manual_seed(0)
    first = Dialogue.new(TOY, config=shape(), max_length=40).fit(TOY, options=options, out=tmp_path)
    again = Dialogue.new(TOY, config=shape(), max_length=40).fit(TOY, options=options, out=tmp_path)
    assert (first.resumed_from, again.resumed_from) == (None, 4) and (tmp_path / "model" / "task.json").is_file()
    with pytest.raises(CheckpointError, match="speaker"):
        Dialogue.new(TOY, config=shape(), max_length=40).fit(TOY, options=options, out=tmp_path, speaker=1)
    with pytest.raises(CheckpointError, match="starting weights"):
        Dialogue.new(TOY, config=shape(), max_length=40, seed=1).fit(TOY, options=options, out=tmp_path)


def test_a_turn_that_loses_its_beginning_is_told(caplog):
    task = talker(max_length=10)
    with caplog.at_level(logging.WARNING, logger="fishpaw"):
        task.fit([Conversation(("今" * 30, "天"))], options=fp.Options(steps=1))
    assert "1 turns are longer than max_length, 10 tokens" in caplog.text
    assert task.encode(["今" * 30]).cut and not task.encode(["今"]).cut


def test_any_causal_model_and_any_encoder_talks(pretrained):
    gpt2 = Dialogue.load(pretrained("gpt2"))                         # no [CLS], no segments: turns with the end token between
    assert gpt2.max_length == 53 and gpt2.encode(["好"]).ids[-1] == gpt2.tokenizer.eos_id and gpt2.layout.start == []
    assert isinstance(gpt2.reply(["好", "天"], GREEDY, max_new=5), str) and isinstance(gpt2.reply([], GREEDY, max_new=5), str)
    assert gpt2.evaluate([Conversation(("好", "天")), Conversation(("今", "我"))], max_new=5)["loss"] > 0
    result = gpt2.fit([Conversation(("好", "天"))], speaker=1, options=fp.Options(steps=1))
    assert result.step == 1
    bert = Dialogue.load(pretrained("bert"))
    assert bert.model.mask.clock == "causal" and bert.max_length == 31 and isinstance(bert.reply(["好"], max_new=5), str)
    with pytest.raises(ConfigError, match="--change mask=causal"):
        Dialogue(fp.load_model(pretrained("bert")), bert.tokenizer)


TEMPLATE = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")


def test_a_chat_template_is_answered_through_until_it_is_trained(pretrained, tmp_path):
    folder = tmp_path / "chat"
    folder.mkdir()
    for file in Path(pretrained("gpt2")).iterdir():
        if file.name != "manifest.json":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    task = Dialogue.load(folder)
    prompts = task.prompts([["好"], ["a" * 20, "b", "c"]], max_new=5)
    texts = [task.tokenizer.decode(row[keep].tolist(), skip_special=False)
             for row, keep in zip(prompts.ids.view(prompts.shape), prompts.rows[0].keep, strict=True)]  # fmt: skip
    assert texts[0] == "<user>好<|endoftext|><assistant>"
    assert texts[1] == "<user>c<|endoftext|><assistant>"             # 53 tokens: the oldest exchange has gone
    assert "".join(task.stream(["好"], GREEDY, max_new=5)) == task.reply(["好"], GREEDY, max_new=5)
    with pytest.raises(DataError, match="doesn't begin"):
        task.reply([], max_new=5)
    with pytest.raises(ConfigError, match="chat template"):
        task.evaluate([Conversation(("a", "b"))])
    with pytest.raises(ConfigError, match="not re-ranked"):
        task.reply(["好"], rank=lambda *any: [0.0], max_new=5)
    task.fit([Conversation(("a", "b"))], options=fp.Options(steps=1))
    task.save(tmp_path / "trained")
    again = Dialogue.load(tmp_path / "trained")
    assert task.template is None and again.template is None and again.encode(["a"]).ids[-1] == again.tokenizer.eos_id
    assert json.loads((tmp_path / "trained" / "task.json").read_text(encoding="utf-8"))["task"] == "dialogue"


def test_small_models_begin_alike_and_know_their_letters():
    first, again, other = (Dialogue.new(TOY, config=shape(), seed=seed).model.table for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert Dialogue.new([Conversation(("很", "热"))] * 200, config=shape(), least=1).tokenizer.size == 7
    assert small(99).vocab_size == 99


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda task: task.reply("你好"), "no list of turns"),
        (lambda task: task.reply(["你好", 3]), "no list of turns"),
        (lambda task: task.reply(TALK, max_new=0), "max_new is 0"),
        (lambda task: task.predict([TALK], batch_size=0), "batch_size is 0"),
        (lambda task: task.reply(TALK, Settings(sample=True, top_p=2.0)), "top_p is 2"),
        (lambda task: task.fit([("a", "b")]), "Conversation 0 is a tuple"),
        (lambda task: task.fit([]), "no conversation in train"),
        (lambda task: task.fit(TOY, []), "no conversation in dev"),
        (lambda task: task.fit(TOY, speaker=2), "speaker is 2"),
        (lambda task: task.fit(TOY, alone=1.5), "alone is 1.5"),
        (lambda task: task.fit([Conversation(("今",))], speaker=1), "Speaker 1 says nothing"),
        (lambda task: task.evaluate([]), "no conversation in the data"),
        (lambda task: task.evaluate(TOY[:1]), "of one conversation"),
        (lambda task: task.evaluate(TOY, samples=0), "samples is 0"),
        (lambda task: Dialogue(task.model, task.tokenizer, max_length=3), "max_length is 3"),
        (lambda task: Dialogue.new(TOY, seed=-1), "seed is -1"),
        (lambda task: Dialogue.new(TOY, config=shape(mask="full")), "mask is full"),
        (lambda task: Dialogue.new(TOY, config=shape(heads=())), "no head"),
    ],
)
def test_mistakes_are_told(wrong, says):
    with pytest.raises((ConfigError, DataError), match=says):
        wrong(talker())


def test_the_vocabulary_of_another_model_is_not_needed(tmp_path):
    """A model trained here opens in transformers' layout again, and other settings beside it don't disturb."""
    random.seed(1)
    model = Transformer(dataclasses.replace(shape(), vocab_size=23))
    fp.save(model, tmp_path / "m", WordPiece(characters([LETTERS[:18]], least=1)))
    assert Dialogue.load(tmp_path / "m").max_length == 512


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_s_code_runs(language, tmp_path, monkeypatch, capsys):
    """On a model of one layer, in the place of the four of 256 units."""
    from fishpaw.tasks import dialogue as module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "small", lambda size: shape(vocab_size=size))
    talk = json.dumps(["你好", "你好呀", "吃了吗", "吃了"], ensure_ascii=False)
    Path("talks.jsonl").write_text(f"{talk}\n{talk}\n", encoding="utf-8")
    page = Path(__file__).parents[2] / "docs" / language / "dialogue.md"
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(block, names)
    assert capsys.readouterr().out.count("\n") >= 4 and Path("talk/task.json").is_file()
