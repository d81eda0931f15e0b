"""Hypotheses line up with their log-probabilities; a history moves rows whole."""

from __future__ import annotations

import torch

from fishpaw.decoding.hypothesis import History, Hypothesis, unpack


def test_content_drops_only_a_closing_end_token():
    closed = Hypothesis((5, 2, 3), (-1.0, -2.0, -4.0), -7.0, prompt=0, ended=True, closed=True)
    stopped = Hypothesis((5, 2, 3), (-1.0, -2.0, -4.0), -7.0, prompt=0, ended=True, closed=False)
    assert closed.content == (5, 2) and stopped.content == (5, 2, 3)
    assert closed.log_probability == -7.0


def test_history_moves_rows_and_outgrows_its_first_buffer():
    history = History(2, torch.zeros(1, dtype=torch.float64))
    expected = [[], []]
    for column in range(71):                                     # the buffer starts at 32 columns
        if column in (13, 40):
            history.select(torch.tensor([1, 0, 1]))
            expected = [list(expected[1]), list(expected[0]), list(expected[1])]
        values = [column * 10 + row for row in range(len(expected))]
        history.append(torch.tensor(values), -torch.tensor(values, dtype=torch.float64))
        for row, value in zip(expected, values, strict=True):
            row.append(value)
    assert history.tokens.tolist() == expected
    assert history.log_probabilities.dtype == torch.float64 and torch.equal(history.log_probabilities, -history.tokens.double())


def test_unpack_cuts_each_row_at_its_length():
    flags = torch.tensor([True, False])
    found = unpack(torch.tensor([[4, 5, 0], [6, 7, 8]]), torch.tensor([[-1.0, -2, 0], [-3, -4, -5]]), torch.tensor([2, 3]),
                   torch.tensor([-3.0, -12]), flags, flags, prompt=3)
    assert found == [Hypothesis((4, 5), (-1, -2), -3, 3, True, True), Hypothesis((6, 7, 8), (-3, -4, -5), -12, 3, False, False)]
