"""The fingerprint: equal for equal data in any process, different for data that differ in anything."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy
import pytest
import torch

from fishpaw.data.fingerprint import fingerprint
from fishpaw.errors import DataError


@dataclass
class Text:
    ids: list[int]
    label: str


DIFFERENT: list[list[object]] = [
    [], [[]], [[], []], ["ab"], ["a", "b"], [["a", "b"]], ["ab", ""], [1], [1.0], ["1"], [True], [None], [b"1"], [[1, 2]], [[2, 1]],
    [[1, 2.0]], [[2**70]], [{"a": 1}], [{"b": 1}], [{"a": "1"}], [("a", 1)], [Text([1], "a")], [Text([1], "b")], [Text([1, 1], "a")],
    [numpy.zeros(2)], [numpy.zeros((1, 2))], [numpy.zeros(2, numpy.float32)], ["\ud800"], ["\ufffd"],
]  # fmt: skip


def test_data_that_differ_in_anything_have_different_fingerprints() -> None:
    assert len({fingerprint(data) for data in DIFFERENT}) == len(DIFFERENT)
    assert fingerprint([torch.zeros(2)]) != fingerprint([torch.ones(2)])


def test_another_process_finds_the_same() -> None:
    data = "[([3, 5], {'text': '鱼', 'label': 1.5}), None]"
    code = f"from fishpaw.data.fingerprint import fingerprint; print(fingerprint({data}))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == fingerprint(eval(data))


def test_what_cannot_be_seen_is_refused() -> None:
    with pytest.raises(DataError, match="an example holds a object.*digest of your own"):
        fingerprint([["a", object()]])
