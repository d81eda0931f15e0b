"""Limits refuse what would never end or can't be meant, by a sentence that names the field and its range."""

from __future__ import annotations

import pytest
import torch

from fishpaw.decoding.limits import LONGEST, Limits
from fishpaw.errors import ConfigError


@pytest.mark.parametrize(("settings", "field"), [
    ({"max_new": 0}, "max_new"), ({"max_new": -1}, "max_new"), ({"max_new": 10**9}, "max_new"), ({"max_new": LONGEST + 1}, "max_new"),
    ({"max_new": 2.0}, "max_new"), ({"max_new": True}, "max_new"), ({"max_new": "7"}, "max_new"), ({"max_new": float("nan")}, "max_new"),
    ({"max_new": 5, "min_new": -1}, "min_new"), ({"max_new": 5, "min_new": 6}, "min_new"), ({"max_new": 5, "min_new": 1.5}, "min_new"),
    ({"max_new": 5, "ends": (-1,)}, "ends"), ({"max_new": 5, "ends": 3}, "ends"), ({"max_new": 5, "ends": [3]}, "ends"),
    ({"max_new": 5, "ends": ("[SEP]",)}, "ends"), ({"max_new": 5, "ends": (3,), "min_ends": 0}, "min_ends"),
    ({"max_new": 5, "ends": (3,), "min_ends": 6}, "min_ends"), ({"max_new": 5, "min_ends": 2}, "min_ends"),
])
def test_bad_limits_name_their_field(settings, field):
    with pytest.raises(ConfigError, match=rf"^{field} is .*"):
        Limits(**settings)


def test_the_range_is_part_of_the_sentence():
    with pytest.raises(ConfigError, match="max_new is 0; allowed: a whole number, 1 to 1048576"):
        Limits(0)


def test_table_marks_the_end_tokens():
    assert Limits(5, ends=(2, 4)).table(7).tolist() == [False, False, True, False, True, False, False]
    assert Limits(5).table(3).dtype == torch.bool and not Limits(5).table(3).any()


def test_an_end_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="ends names token 7; allowed: 0 to 6"):
        Limits(5, ends=(2, 7)).table(7)
