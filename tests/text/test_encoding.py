from __future__ import annotations

import pytest

from fishpaw.errors import ConfigError, DataError
from fishpaw.text.encoding import Pieces, assemble, check_pairs, share


def pieces(*ids):
    return Pieces(list(ids), [str(id) for id in ids], [(id, id + 1) for id in ids])


@pytest.mark.parametrize("room", range(0, 15))
def test_share_takes_from_the_longer_until_both_fit(room):
    for first in range(8):
        for second in range(8):
            one, two = share(first, second, room)
            assert one + two == min(first + second, room) and one <= first and two <= second
            if one < first and two < second:
                assert abs(one - two) <= 1
            elif one < first:
                assert one >= two - (first == second)           # of equals, the second keeps the odd one
            elif two < second:
                assert two >= one


def test_a_pair_is_laid_out_as_bert_does():
    got = assemble(pieces(7, 8), pieces(9), max_length=None, truncate="right", start=(1, "[CLS]"), end=(2, "[SEP]"))
    assert got.ids == [1, 7, 8, 2, 9, 2] and got.segments == [0, 0, 0, 0, 1, 1] and len(got) == 6
    assert got.offsets == [(0, 0), (7, 8), (8, 9), (0, 0), (9, 10), (0, 0)]


@pytest.mark.parametrize(("side", "ids"), [("right", [1, 5, 6, 2, 3, 4, 2]), ("left", [1, 7, 8, 2, 3, 4, 2])])
def test_truncation_is_from_the_named_side(side, ids):
    assert assemble(pieces(5, 6, 7, 8), pieces(3, 4), max_length=7, truncate=side, start=(1, "c"), end=(2, "s")).ids == ids


def test_room_for_the_special_tokens_alone_is_enough_and_less_is_an_error():
    assert assemble(pieces(5), pieces(6), max_length=3, truncate="left", start=(1, "c"), end=(2, "s")).ids == [1, 2, 2]
    with pytest.raises(ConfigError, match="max_length=2 leaves no room for 3"):
        assemble(pieces(5), pieces(6), max_length=2, truncate="left", start=(1, "c"), end=(2, "s"))
    with pytest.raises(ConfigError, match="max_length=0"):
        assemble(pieces(5), None, max_length=0, truncate="left")
    with pytest.raises(ConfigError, match="'middle'"):
        assemble(pieces(5), None, max_length=None, truncate="middle")


def test_a_string_is_not_a_list_of_texts():
    with pytest.raises(DataError, match="one string"):
        check_pairs("text", None)
    with pytest.raises(DataError, match="2 texts but 1 pairs"):
        check_pairs(["a", "b"], ["c"])
