"""score: what naive loops of one text, one token and no packing say, in each way; windows, suspects, and who can't be asked."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fishpaw.contracts import Batch
from fishpaw.decoding.scoring import score as continuations
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.score import Score, windows
from fishpaw.weights.load import load

TEXTS = ["今天天气很好，我们去公园玩吧。", "好", "房间不好，it's 坏的", "前台很热情，下次还住这里", "是不是", "天"]


@pytest.fixture
def scorer(pretrained, tiny):
    """scorer("masked" | "t-ta" | "causal" | "gpt2", **options) -> a Score in fp64, its weights large."""
    def make(way: str, **options: object) -> Score:
        if way == "gpt2":
            return Score(*load(pretrained("gpt2"), dtype=torch.float64), **options)
        model, tokenizer = load(pretrained("bert"), dtype=torch.float64, **({"mask": "causal"} if way == "causal" else {}))
        if way == "t-ta":
            torch.manual_seed(3)
            model = Transformer(tiny(tokenizer.size, stream="positions", mask={"name": "full", "exclude_self": True}, heads=("lm",),
                                     layers=2, position="learned", max_positions=31, init_std=0.6)).double().eval()
        return Score(model, tokenizer, **options)

    return make


def naive(task: Score, ids: list[int], at: int) -> torch.Tensor:
    """All log-probabilities of token `at` of [CLS] ids [SEP], by one row that doesn't hold it: of a mask, of another token, or cut off."""
    start, end = task.tokenizer.cls_id, task.tokenizer.sep_id
    row = [start, *ids, end]
    if task.way == "causal":
        logits = task.model(torch.tensor([row[: at + 1]])).logits[0, -1]
    else:
        row[at + 1] = task.tokenizer.mask_id if task.way == "masked" else 0           # T-TA: whatever stands there
        logits = task.model(torch.tensor([row])).logits[0, at + 1]
    return logits.log_softmax(-1)


def assert_as_naive(task: Score, found) -> None:
    with torch.no_grad():
        for text, one in zip(TEXTS, found, strict=True):
            encoding = task.tokenizer.encode(text, special=False)
            assert [(each.start, each.end) for each in one.tokens] == encoding.offsets and one.text == text
            for at, (id, token) in enumerate(zip(encoding.ids, one.tokens, strict=True)):
                logs = naive(task, encoding.ids, at)
                assert token.log_probability == pytest.approx(float(logs[id]), abs=1e-9)
                ordinary = {each: float(logs[each]) for each in range(task.tokenizer.size) if each not in task.tokenizer.special_ids}
                assert token.rank == 1 + sum(value > float(logs[id]) for value in ordinary.values())
                best = sorted((each for each in ordinary if each != id), key=lambda each: -ordinary[each])[:3]
                assert [name for name, _ in token.alternatives] == [task.tokenizer.tokens[each] for each in best]
                assert [value for _, value in token.alternatives] == pytest.approx([ordinary[each] for each in best], abs=1e-9)
            assert one.total == pytest.approx(sum(each.log_probability for each in one.tokens), abs=1e-9)
            assert one.mean == pytest.approx(one.total / len(encoding.ids)) and one.perplexity == pytest.approx(math.exp(-one.mean))


@pytest.mark.parametrize("way", ["masked", "t-ta", "causal"])
@pytest.mark.parametrize("tokens", [1, 37, 4096])
def test_equals_a_naive_loop(scorer, way, tokens):
    task = scorer(way, top=3)
    assert task.way == way
    assert_as_naive(task, task.score(TEXTS, tokens=tokens))


@pytest.mark.parametrize("way", ["masked", "t-ta", "causal"])
def test_logits_in_small_parts_change_nothing(scorer, way, monkeypatch):
    monkeypatch.setattr("fishpaw.tasks.score.LOGITS", 1)
    task = scorer(way, top=3)
    assert_as_naive(task, task.score(TEXTS))


@pytest.mark.parametrize("way", ["masked", "t-ta", "causal"])
def test_a_shift_by_one_is_noticed(scorer, way, monkeypatch):
    """The planted fault."""
    task = scorer(way, top=3)
    rows = Score._rows
    monkeypatch.setattr(Score, "_rows", lambda self, sheet: (row._replace(shift=row.shift - 1) for row in rows(self, sheet)))
    with pytest.raises(AssertionError):
        assert_as_naive(task, task.score(TEXTS))


def test_a_token_left_unmasked_is_noticed(scorer):
    """Another: with a mask that hides nothing, the token is read."""
    task = scorer("masked", top=3)
    task.mask_id = task.tokenizer.encode("今", special=False).ids[0]
    with pytest.raises(AssertionError):
        assert_as_naive(task, task.score(TEXTS))


@pytest.mark.parametrize("way", ["causal", "gpt2"])
def test_a_causal_model_says_what_decoding_says(scorer, way):
    """Also where the tokenizer puts nothing before a text: it begins with the token that ends one."""
    task = scorer(way)
    start = task.tokenizer.cls_id if way == "causal" else task.tokenizer.eos_id
    texts = [task.tokenizer.encode(text, special=False).ids for text in TEXTS[1:]]
    prompts = Batch.padded(torch.full((len(texts), 1), start))
    for one, (expected,) in zip(task.score(TEXTS[1:]), continuations(TransformerStepper(task.model), prompts, [[ids] for ids in texts]),
                                strict=True):
        assert one.way == "causal" and one.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-9)


def test_the_checkpoint_may_name_the_token_that_begins_a_text(pretrained):
    model, tokenizer = load(pretrained("gpt2"))
    model.generation = {"bos_token_id": 7, "eos_token_id": 9}
    assert Score(model, tokenizer).before == (7,)
    model.generation = {"bos_token_id": None}
    assert Score(model, tokenizer).before == (tokenizer.eos_id,)


def test_bytes_are_spelt_as_text_where_they_are_some(scorer):
    (one,) = scorer("gpt2", top=300).score(["好今a"])
    assert [(each.start, each.end) for each in one.tokens] == [(0, 1), (1, 2), (1, 2), (2, 3)]              # 今 is two tokens
    names = {each.token for each in one.tokens[0].alternatives}
    assert {"a", "[", "ä»"} <= names and "å¥½" not in names and "<|endoftext|>" not in names
    assert "好" in {each.token for each in one.tokens[1].alternatives}


def test_what_is_unknown_or_special_gets_no_probability(scorer):
    for way in ("masked", "t-ta", "causal"):
        (one,) = scorer(way).score(["今犇天[MASK]好"])
        assert [each.token for each in one.tokens] == ["今", "[UNK]", "天", "[MASK]", "好"]
        assert [each.log_probability is None for each in one.tokens] == [False, True, False, True, False]
        unknown = one.tokens[1]
        assert (unknown.rank, unknown.alternatives, unknown.suspect, one.unknown) == (None, (), False, 2)
        assert len(one.log_probabilities) == 3 and one.mean == pytest.approx(one.total / 3)
        assert all(not {"[UNK]", "[MASK]", "[CLS]"} & {name for name, _ in each.alternatives} for each in one.tokens)
    (nothing,) = scorer("masked").score(["犇"])
    assert (nothing.total, nothing.mean, nothing.perplexity, nothing.unknown) == (None, None, None, 1)


@pytest.mark.parametrize(("margin", "rank"), [(0.0, 1), (2.0, 1), (0.0, 9), (3.0, 9), (1e9, 1)])
def test_a_suspect_is_far_below_the_best_and_not_among_the_first(scorer, margin, rank):
    found = scorer("masked", margin=margin, rank=rank).score(TEXTS)
    for one in found:
        for token in one.tokens:
            far = token.alternatives[0].log_probability - token.log_probability > margin
            assert token.suspect == (far and token.rank > rank)
        assert one.suspects == tuple(token for token in one.tokens if token.suspect)
    assert any(one.suspects for one in found) == (margin < 1e9)


def test_windows_score_each_token_once_where_it_sees_most():
    for ahead in (False, True):
        for room in range(1, 9):
            for count in range(1, 40):
                found = windows(count, room, ahead=ahead)
                assert [at for one in found for at in range(one.first, one.last)] == [*range(count)]
                for one in found:
                    assert 0 <= one.start <= one.first < one.last <= one.stop <= count and one.stop - one.start == min(room, count)
                    for at in range(one.first, one.last):
                        seen = [min(at - each.start, each.stop - 1 - at) if ahead else at - each.start
                                for each in found if each.start <= at < each.stop]
                        mine = min(at - one.start, one.stop - 1 - at) if ahead else at - one.start
                        assert mine == max(seen)


@pytest.mark.parametrize("way", ["masked", "t-ta", "causal", "gpt2"])
def test_long_texts_are_read_in_windows(scorer, way):
    """Each token has the score that its window has as a text of its own."""
    task = scorer(way, max_length=9)
    text = "今天天气很好我们去公园玩吧房间前台很热情下次还住这里的了是不好坏" * (1 if way == "gpt2" else 3)
    (one,) = task.score([text], tokens=20)
    ids = task.tokenizer.encode(text, special=False).ids
    assert len(one.log_probabilities) == len(ids) > 31 - 2
    pieces = windows(len(ids), task.room, ahead=task.way != "causal")
    assert len(pieces) > 5 and task.room == 9 - len(task.before) - len(task.after)
    for window in pieces:
        with torch.no_grad():
            row = [*task.before, *ids[window.start : window.stop], *task.after]
            for at in range(window.first, window.last):
                place, hidden = len(task.before) + at - window.start, list(row)
                if task.way == "masked":
                    hidden[place] = task.mask_id
                logits = task.model(torch.tensor([hidden])).logits[0, place - (task.way == "causal")]
                assert one.log_probabilities[at] == pytest.approx(float(logits.log_softmax(-1)[ids[at]]), abs=1e-9)


def test_the_model_s_positions_bound_the_window(scorer, pretrained):
    assert scorer("masked").room == scorer("masked", max_length=10**6).room == 29
    assert scorer("causal").room == 30 and scorer("gpt2").room == 52
    assert Score(*load(pretrained("roformer"))).room == 29                          # any number: as many as its config speaks of
    assert Score(*load(pretrained("roformer")), max_length=101).room == 99


@pytest.mark.parametrize("way", ["masked", "t-ta", "causal"])
def test_a_stream_reads_no_further_than_it_must_and_keeps_the_order(scorer, way):
    task, read = scorer(way), []

    def endless():
        for number in range(10**9):
            read.append(number)
            yield TEXTS[number % len(TEXTS)]

    stream = task.stream(endless(), tokens=64)
    found = [next(stream) for _ in range(40)]
    assert [one.text for one in found] == [TEXTS[number % len(TEXTS)] for number in range(40)] and len(read) < 600
    assert [one.total for one in found[:6]] == pytest.approx([one.total for one in task.score(TEXTS)], abs=1e-9)
    assert task.score(iter(())) == []


def test_what_is_wrong_with_a_text_is_said_after_those_before_it(scorer):
    task, found = scorer("masked"), []
    with pytest.raises(DataError, match="no token to score"):
        for one in task.stream(["今", "天", " \t", "好"]):
            found.append(one.text)
    assert found == ["今", "天"]
    for wrong, says in (("今天", "one string"), ([""], "no token"), ([None], "A text is None")):
        with pytest.raises(DataError, match=says):
            task.score(wrong)


def test_no_dropout_falls_on_a_score_and_nothing_is_left_behind(pretrained):
    model, tokenizer = load(pretrained("bert"), dropout=0.5)
    answer = Score(model, tokenizer).score(TEXTS)
    model.train()
    assert Score(model, tokenizer).score(TEXTS) == answer and all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_prepared_models_say_the_same(pretrained):
    model, tokenizer = load(pretrained("bert"))
    plain = Score(model, tokenizer).score(TEXTS)
    model.prepare()
    for one, other in zip(plain, Score(model, tokenizer).score(TEXTS), strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
    assert all(one.perplexity > 1 for one in Score(model.prepare(dtype=torch.bfloat16), tokenizer).score(TEXTS))


def test_figures_are_json(scorer):
    (one,) = scorer("masked", top=2).score(["今犇"])
    again = json.loads(json.dumps(one.figures, allow_nan=False))
    assert again["text"] == "今犇" and again["way"] == "masked" and again["unknown"] == 1 and again["total"] == one.total
    assert again["tokens"][1] == {"start": 1, "end": 2, "token": "[UNK]", "log_probability": None, "rank": None, "alternatives": [],
                                  "suspect": False}
    assert [each["token"] for each in again["tokens"][0]["alternatives"]] == [each.token for each in one.tokens[0].alternatives]


def test_scores_that_are_no_numbers_are_an_error(pretrained):
    model, tokenizer = load(pretrained("bert"))
    with torch.no_grad():
        model.heads["mlm"].bias.fill_(float("nan"))
    with pytest.raises(FishpawError, match="not finite"):
        Score(model, tokenizer).score(["今"])


def test_models_that_score_no_tokens_are_refused(pretrained, tiny):
    model, tokenizer = load(pretrained("bert"), heads=("pooler",))
    with pytest.raises(ConfigError, match="no head that scores tokens"):
        Score(model, tokenizer)
    with pytest.raises(ConfigError, match="mask 'unilm'.*causal"):
        Score(*load(pretrained("bert"), mask="unilm"))
    small = tiny(tokenizer.size, heads=("lm",), position="learned", mask="causal")
    decoder = small.change({"encoder": tiny(tokenizer.size, position="learned")})
    with pytest.raises(ConfigError, match="encoder-decoder can't score"):
        Score(Transformer(decoder), tokenizer)
    with pytest.raises(ConfigError, match="sees the tokens that it is to guess"):
        Score(Transformer(small.change({"stream": "positions", "mask": "full"})), tokenizer)
    ending = {"name": "lm", "ending": {"name": "self_terminating", "epsilon": 1e-3, "end": 3}}
    with pytest.raises(ConfigError, match="has an ending"):
        Score(Transformer(small.change({"heads": (ending,)})), tokenizer)
    with pytest.raises(DataError, match=r"has no \[MASK\]"):
        Score(load(pretrained("bert"))[0], load(pretrained("gpt2"))[1])
    for options, says in (({"top": 0}, "top is 0"), ({"margin": -1.0}, "margin is -1.0"), ({"rank": 0}, "rank is 0"),
                          ({"max_length": 2}, "no room"), ({"max_length": 0}, "max_length is 0")):
        with pytest.raises(ConfigError, match=says):
            Score.load(pretrained("bert"), **options)
