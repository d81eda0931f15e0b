"""Masking: the shares of the paper, special tokens left alone, the same for the same seed."""

from __future__ import annotations

import numpy
import pytest

from fishpaw.data.masking import mask_tokens
from fishpaw.errors import ConfigError

IDS = numpy.random.default_rng(0).integers(5, 1009, 100_003)


def masked(ids=IDS, seed=1, **options):
    return mask_tokens(ids, numpy.random.default_rng(seed), **{"mask_id": 4, "vocab_size": 1009, **options})


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_shares_are_those_of_the_paper(rate):
    seen, places = masked(rate=rate)
    found = seen[places]
    shares = [len(places) / len(IDS), (found == 4).mean(), (found == IDS[places]).mean()]
    for share, expected, count in zip(shares, [rate, 0.8, 0.1 + 0.1 / 1004], [len(IDS), *[len(places)] * 2], strict=True):
        assert abs(float(share) - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    untouched = numpy.ones(len(IDS), dtype=bool)
    untouched[places] = False
    assert numpy.array_equal(seen[untouched], IDS[untouched]) and places.tolist() == sorted(set(places.tolist()))
    replaced = found[(found != 4) & (found != IDS[places])]
    assert int(replaced.min()) >= 5 and int(replaced.max()) < 1009 and len(numpy.unique(replaced)) > 500


def test_special_tokens_are_never_chosen():
    ids = numpy.tile(numpy.arange(5), 1000)
    seen, places = masked(ids)
    assert numpy.array_equal(seen, ids) and len(places) == 0
    assert len(masked(ids, ordinary=2)[1]) > 0                       # the planted fault: a special token that counts as ordinary


def test_a_seed_gives_the_same_again_and_another_one_others():
    assert all(numpy.array_equal(one, other) for one, other in zip(masked(), masked(), strict=True))
    assert len(masked()[1]) != len(masked(seed=2)[1])


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"rate": 1.0}, {"rate": float("nan")}, {"ordinary": 1009}, {"ordinary": -1},
                                     {"words": numpy.ones(3, dtype=bool)}])
def test_what_can_not_be_is_refused(options):
    with pytest.raises(ConfigError):
        masked(**options)


def test_a_word_is_chosen_whole_and_has_one_fate():
    words = numpy.random.default_rng(2).random(len(IDS)) < 0.6
    words[0] = True
    seen, places = masked(words=words)
    owner = words.cumsum()
    chosen = numpy.isin(owner, owner[places])
    assert chosen.sum() == len(places)                               # never a part of a word
    hidden = (seen == 4)[places]
    for word in numpy.unique(owner[places])[:500]:
        assert len(set(hidden[owner[places] == word])) == 1
    share = len(numpy.unique(owner[places])) / words.sum()
    assert abs(share - 0.15) < 5 * (0.15 * 0.85 / words.sum()) ** 0.5
    alone = masked()[1]                                              # the planted fault: single tokens where words were asked for
    assert numpy.isin(owner, owner[alone]).sum() != len(alone)
