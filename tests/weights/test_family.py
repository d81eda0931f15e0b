"""The small parts that tables of families are made with: checked fields, and the shortest list of turns."""

from __future__ import annotations

import itertools

import pytest

from fishpaw.errors import ConfigError
from fishpaw.weights.family import number, period, truth, whole
from fishpaw.weights.names import FAMILIES


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (number, (0, -1.5, 3), ("1", None, True, float("inf"), float("nan"), [1])),
        (lambda values, name, default: whole(values, name, default, least=2), (2, 7), (1, 2.0, "2", True, None)),
        (truth, (True, False), (0, 1, "true", None)),
    ],
)
def test_a_field_is_what_it_should_be_or_named(check, good, bad):
    assert [check({"field": value}, "field", 5) for value in good] == list(good)
    for value in bad:
        with pytest.raises(ConfigError, match="field is"):
            check({"field": value}, "field", 5)


@pytest.mark.parametrize("turns", [*itertools.product("ab", repeat=4), tuple("abaabaab"), tuple("abcabca"), ("a",)])
def test_the_shortest_turns_give_the_list_back(turns):
    found = period(turns)
    assert [found[i % len(found)] for i in range(len(turns))] == list(turns)
    shorter = [size for size in range(1, len(found)) if all(one == turns[i % size] for i, one in enumerate(turns))]
    assert not shorter


def test_every_family_is_known_by_its_name_and_writes_one_of_its_types():
    assert all(FAMILIES[name].name == name and FAMILIES[name].types for name in FAMILIES)
    assert FAMILIES["bert"].types == ("bert",) and FAMILIES["t5.1.1"].types[0] == "t5"
