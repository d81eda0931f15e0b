"""What one rendering may cost: by length, before it is spent."""

from __future__ import annotations

import pytest

from fishpaw.errors import ConfigError
from fishpaw.text.budget import STEPS, Budget


def cost(charge):
    budget = Budget()
    charge(budget)
    return STEPS - budget.steps


def test_reading_costs_by_length_and_comparing_by_the_smaller():
    assert cost(lambda budget: budget.read("a" * 256_000)) == 1001
    assert cost(lambda budget: budget.compare("a" * 256_000, "a" * 2_560)) == 11
    assert cost(lambda budget: budget.compare(["a" * 256_000] * 9, ["b"])) == 3
    assert cost(lambda budget: budget.compare("a" * 256_000, 3)) == cost(lambda budget: budget.contain("a", {"b": 1})) == 1
    assert cost(lambda budget: budget.contain("a", ["b"] * 97)) == 97
    assert cost(lambda budget: budget.contain("a", "b" * 25_600)) == 101
    forwards, backwards = (cost(lambda budget, way=way: budget.search("a" * 25_600, 10_000, backwards=way)) for way in (False, True))
    assert backwards > 50 * forwards


def test_a_list_that_holds_another_many_times_counts_it_as_often():
    inner = ["x" * 96]
    for _ in range(4):
        inner = [inner] * 3
    assert Budget().weigh(inner) == 3**4 * 98 + (3**4 - 1) // 2
    with pytest.raises(ConfigError, match="steps"):
        for _ in range(20):
            inner = [inner, inner]
        Budget().weigh(inner)


def test_what_is_lazy_is_counted_as_it_comes():
    budget = Budget()
    values = budget.made(iter("abc" * 33))
    assert budget.steps == STEPS and len(list(values)) == 99 and STEPS - budget.steps == 99
    with pytest.raises(ConfigError, match="steps"):
        list(budget.made(iter(range(STEPS))))


@pytest.mark.parametrize(("spend", "said"), [
    (lambda budget: budget.work(STEPS + 1), "steps"), (lambda budget: budget.spend(2**24 + 1), "characters"),
    (lambda budget: budget.room(2**24 + 1), "values"), (lambda budget: [budget.room(2**24) for _ in range(17)], "values"),
])  # fmt: skip
def test_what_goes_beyond_is_refused(spend, said):
    with pytest.raises(ConfigError, match=said):
        spend(Budget())
