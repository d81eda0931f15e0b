"""Segment: the words of a text beside a naive reading of it, units, windows, limits of the threshold, and who can't be asked."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.errors import ConfigError, DataError
from fishpaw.interpret.perturbed_masking import cosine, l2
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.segment import Layout, Segment, parts, units
from fishpaw.text.encoding import Encoding
from fishpaw.weights.load import load

TEXT = "今天天气很热，我们去公园玩吧。"


@pytest.fixture
def bert(pretrained):
    return load(pretrained("bert"))


def naive(model, tokenizer, text, metric=l2):
    """d of each border, from the definition, a text at a time; a character a unit."""
    ids = tokenizer.encode(text).ids

    def vector(at, *masked):
        read = [tokenizer.mask_id if place in masked else id for place, id in enumerate(ids)]
        with torch.no_grad():
            return model(torch.tensor([read])).hidden[0, at]

    return [float(metric(vector(t, t), vector(t, t, t + 1)) + metric(vector(t + 1, t + 1), vector(t + 1, t, t + 1))) / 2
            for t in range(1, len(ids) - 2)]  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_correlations_are_the_naive_ones_and_words_follow_from_them(pretrained, family):
    model, tokenizer = load(pretrained(family))
    values = naive(model, tokenizer, TEXT)
    threshold = sorted(values)[len(values) // 2]
    (found,) = Segment(model, tokenizer, threshold=threshold - 1e-3).segment([TEXT])
    assert found.correlations == pytest.approx(values, abs=1e-4) and "".join(found.units) == TEXT      # d is up to 10 here: fp32
    words, start = [], 0
    for at, value in enumerate(values, 1):
        if value < threshold - 1e-3:
            words.append(TEXT[start:at])
            start = at
    assert list(found.words) == [*words, TEXT[start:]] and 1 < len(found.words) < len(TEXT)
    (by_angle,) = Segment(model, tokenizer, metric=cosine).segment([TEXT])
    assert by_angle.correlations == pytest.approx(naive(model, tokenizer, TEXT, cosine), abs=1e-5)


def test_the_threshold_has_its_limits_and_between_them_words_only_multiply(bert):
    def count(threshold):
        (found,) = Segment(*bert, threshold=threshold).segment([TEXT])
        assert "".join(found.words) == TEXT
        return len(found.words)

    values = naive(*bert, TEXT)
    counts = [count(threshold) for threshold in (-math.inf, *(value + 1e-3 for value in sorted(values)), math.inf)]
    assert counts[0] == 1 and counts[-1] == len(TEXT) and counts == sorted(counts)


def test_without_a_threshold_it_cuts_at_valleys(bert):
    (found,) = Segment(*bert).segment([TEXT])
    d = [math.inf, *found.correlations, math.inf]
    assert list(found.cuts) == [d[at - 1] > d[at] < d[at + 1] for at in range(1, len(d) - 1)] and any(found.cuts)


def test_texts_alone_and_together_in_any_batch(bert):
    task, texts = Segment(*bert), [TEXT, "今", "天气", "it's 天气"]
    alone = [task.segment([text])[0] for text in texts]
    for tokens in (1, 60, 4096):
        for one, other in zip(task.segment(iter(texts), tokens=tokens), alone, strict=True):
            assert one.words == other.words and one.correlations == pytest.approx(other.correlations, abs=1e-4)
    assert alone[1].words == ("今",) and alone[1].correlations == () and alone[2].words == ("天气",)


def test_white_space_always_parts_and_runs_of_letters_stay_whole(bert):
    one_word = Segment(*bert, threshold=-math.inf)
    (found,) = one_word.segment([" 今天 don't\u3000天气\n"])
    assert found.words == ("今天", "don't", "天气") and found.units == ("今", "天", "don", "'", "t", "天", "气")
    assert len(found.correlations) == len(found.cuts) == 6
    apart = Segment(*bert, threshold=math.inf)
    (found,) = apart.segment(["今don天"])
    assert found.words == ("今", "don", "天")
    for text in ("\u200b今天\u200b", "今 \u200b天", "今犇天"):         # passed over by the tokenizer; unknown to it
        for task in (one_word, apart):
            (found,) = task.segment([text])
            assert "".join(found.words) == text.replace(" ", "")


def test_units_of_tokens():
    def made(text, *offsets, most=99):
        return [(text[start:end], count) for start, end, count in
                units(text, Encoding([0] * len(offsets), [0] * len(offsets), [""] * len(offsets), [*offsets]), most=most)]  # fmt: skip

    assert made("天ab气", (0, 1), (1, 2), (2, 3), (3, 4)) == [("天", 1), ("ab", 2), ("气", 1)]
    assert made("天气", (0, 1), (0, 1), (0, 1), (1, 2)) == [("天", 3), ("气", 1)]                       # bytes of one character
    assert made("ab cd", (0, 2), (3, 4), (4, 5)) == [("ab", 1), ("cd", 2)]
    assert made("ab cd", (0, 2), (2, 5)) == [("ab", 1), ("cd", 1)]                                     # with the blank before
    assert made("２０年a,b", *((at, at + 1) for at in range(6))) == [("２０", 2), ("年", 1), ("a", 1), (",", 1), ("b", 1)]
    assert made("abcde", *((at, at + 1) for at in range(5)), most=2) == [("ab", 2), ("cd", 2), ("e", 1)]
    assert made("a ", (0, 1), (1, 2)) == [("a", 1), ("", 1)]                                           # a token for a blank


@pytest.mark.parametrize("room", [2, 3, 5, 8, 29])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 31, 100])
@pytest.mark.parametrize("longest", [1, 2, 4])
def test_parts_decide_each_border_once_where_both_units_are_read(room, count, longest):
    lengths = [1 + at * 7 % min(longest, room // 2) for at in range(count)]
    found = parts(lengths, room)
    assert [at for part in found for at in range(part.first, part.last)] == list(range(count - 1))
    for part in found:
        assert sum(lengths[part.start : part.stop]) <= room and part.start < part.stop
        assert part.first == part.last or part.start <= part.first and part.last < part.stop
    assert found[0].start == 0 and found[-1].stop == count
    for here, there in zip(found, found[1:], strict=False):
        assert here.start < there.start < here.stop < there.stop
    if room >= 8 and longest == 1:                                     # no border is decided nearer to an end than a quarter
        for part in found:
            for at in range(part.first, part.last):
                assert at + 1 - part.start >= room // 4 or part.start == 0
                assert part.stop - at - 1 >= room // 4 or part.stop == count


def test_long_texts_are_read_in_windows_and_near_a_middle_it_makes_little_difference(bert):
    model, tokenizer = bert
    text = (TEXT * 9)[:100]
    (found,) = Segment(model, tokenizer).segment([text])               # the model reads 29 characters at a time
    assert len(found.correlations) == 99 and "".join(found.words) == text
    whole = Segment(model, tokenizer).segment([text[:29]])[0]
    assert found.correlations[:14] == pytest.approx(whole.correlations[:14], abs=1e-4)
    (shorter,) = Segment(model, tokenizer, max_length=9).segment([text])
    assert len(shorter.correlations) == 99 and shorter.correlations[50] != pytest.approx(found.correlations[50], abs=1e-3)
    local, _ = load_local(model, tokenizer)
    far, near = (Segment(local, tokenizer, max_length=length).segment([text])[0].correlations for length in (31, 17))
    assert far == pytest.approx(near, abs=1e-4)                        # a model that sees 3 characters isn't hurt by windows of 15


def load_local(model, tokenizer):
    """One layer, window 3, and no positions: what it makes of a character depends on its neighbours only."""
    torch.manual_seed(1)
    changes = {"mask": {"name": "full", "window": 3}, "position": "rotary", "heads": ("mlm",), "family": "roformer", "init_std": 0.5}
    return Transformer(model.config.change(changes)), tokenizer


def test_long_runs_of_letters_are_parted_before_they_fill_a_window(bert):
    text = "今" + "don" * 9 + "天"                                  # 29 tokens
    (found,) = Segment(*bert, threshold=-math.inf, max_length=11).segment([text])
    assert found.words == (text,)
    (found,) = Segment(*bert, threshold=math.inf, max_length=11).segment([text])
    assert "".join(found.words) == text and max(map(len, found.words)) == 4    # half of the room


def test_what_the_tokenizer_adds_is_laid_around(bert, pipeline):
    tokenizer = bert[1]
    layout = Layout.of(tokenizer, longest=31)
    assert (layout.before, layout.after, layout.room) == ((tokenizer.vocab.id("[CLS]"),), (tokenizer.vocab.id("[SEP]"),), 29)
    ids, places = layout.lay([7, 8, 9], [1, 2])
    assert ids.tolist() == [*layout.before, 7, 8, 9, *layout.after] and [*map(list, places)] == [[1], [2, 3]]
    bare = Layout.of(pipeline("$A </s>"), longest=None)
    assert bare.before == () and len(bare.after) == 1 and bare.room is None


def test_figures_are_all_of_it(bert):
    (found,) = Segment(*bert).segment(["今天天气"])
    figures = found.figures
    assert figures["text"] == "今天天气" and figures["units"] == ["今", "天", "天", "气"]
    assert len(figures["correlations"]) == len(figures["cuts"]) == 3 and figures["words"] == list(found.words)


def test_what_cannot_be_is_refused(bert, pretrained):
    with pytest.raises(ConfigError, match="threshold is nan"):
        Segment(*bert, threshold=math.nan)
    with pytest.raises(ConfigError, match="layer is 2"):
        Segment(*bert, layer=2)
    with pytest.raises(ConfigError, match="max_length is 3: no room for two tokens"):
        Segment(*bert, max_length=3)
    with pytest.raises(ConfigError, match="max_length is 0"):
        Segment(*bert, max_length=0)
    with pytest.raises(ConfigError, match="needs a masked language model"):
        Segment.load(pretrained("gpt2"))
    with pytest.raises(ConfigError, match="needs a masked language model"):
        Segment.load(pretrained("bert"), changes={"mask": "causal"})
    with pytest.raises(DataError, match="no token to segment"):
        Segment(*bert).segment(["\u200b"])
    with pytest.raises(DataError, match="one string"):
        Segment(*bert).segment("今天")
