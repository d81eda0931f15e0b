"""Which token is what, for the tokenizers that come with a file of their own."""

from __future__ import annotations

import pytest

from fishpaw.errors import DataError
from fishpaw.text.roles import Roles

NAMES = ("pad", "bos", "eos", "unk", "sep", "cls", "mask")


@pytest.mark.parametrize("role", NAMES)
def test_a_role_has_its_id_or_is_named(role):
    named = {name: number for number, name in enumerate(NAMES)}
    assert getattr(Roles("abcdefg", named, {}), f"{role}_id") == named[role]
    without = Roles("abcdefg", {name: id for name, id in named.items() if name not in (role, "sep")}, {})
    if role == "pad":
        assert without.pad_id == named["eos"]                        # it is never attended to
    else:
        with pytest.raises(DataError, match=f"no {role} token"):
            getattr(without, f"{role}_id")


def test_what_ends_a_text_and_what_fills_up_have_others_in_their_place():
    assert Roles("ab", {"sep": 1}, {}).eos_id == 1 and Roles("ab", {"eos": 0, "sep": 1}, {}).eos_id == 0
    assert Roles("ab", {}, {}).pad_id == 0


def test_ids_lie_within_the_vocabulary_and_files_are_written_back(tmp_path):
    roles = Roles("abc", {}, {"x.model": b"\0\1", "y.json": b"{}"})
    assert roles.size == 3 and roles._within(iter([0, 2])) == [0, 2]
    for id in (-1, 3):
        with pytest.raises(DataError, match=f"id {id} is outside the vocabulary of 3"):
            roles._within([0, id])
    roles.save(tmp_path / "deep" / "folder")
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep" / "folder").iterdir()} == {"x.model": b"\0\1", "y.json": b"{}"}
