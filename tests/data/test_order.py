"""The order of examples: every example once an epoch, the same for the same seed, and the same again from any place in it."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishpaw.data.order import Order
from fishpaw.errors import ConfigError, DataError

LENGTHS = numpy.random.RandomState(0).zipf(1.6, 1009).clip(1, 251).tolist()


def plain(batches: list[Any]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("choice", [{"batch_size": size} for size in (1, 13, 2000)] + [{"token_budget": budget} for budget in (3, 256)])
@pytest.mark.parametrize("pool", [1, 3, 32])
def test_an_epoch_holds_every_example_once_in_batches_within_the_limit(choice: dict[str, int], pool: int) -> None:
    order = Order(LENGTHS, pool=pool, seed=5, **choice)
    batches = plain(order.batches(2))
    assert sorted(sum(batches, [])) == list(range(1009))
    assert len(batches) == order.count(2)
    for batch in batches:
        longest = max(LENGTHS[i] for i in batch)
        assert len(batch) <= choice.get("batch_size", 10**9)
        assert len(batch) == 1 or len(batch) * longest <= choice.get("token_budget", 10**9)


def test_the_order_is_a_function_of_seed_and_epoch_only() -> None:
    here, there = Order(LENGTHS, seed=3), Order(LENGTHS, seed=3)
    numpy.random.seed(1)
    there.batches(0)
    assert plain(here.batches(4)) == plain(there.batches(4))
    seen = {json.dumps(plain(Order(LENGTHS, seed=seed).batches(epoch))) for seed in (0, 1, 2**64 - 1) for epoch in range(5)}
    assert len(seen) == 15


def test_the_first_examples_of_a_known_seed() -> None:
    """Philox' stream is promised by numpy: this order must not change between versions, or runs could not go on."""
    assert plain(Order([1] * 7, batch_size=3, pool=1, seed=11).batches(0)) == [[5], [0, 1, 3], [4, 6, 2]]


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=31),
    st.integers(1, 7),
    st.booleans(),
    st.lists(st.integers(1, 5), max_size=23),
    st.data(),
)
def test_going_on_from_any_place_gives_what_would_have_come(
    lengths: list[int], size: int, by_tokens: bool, takes: list[int], data: st.DataObject
) -> None:
    def made() -> Order:
        return Order(lengths, batch_size=size, token_budget=20 * size if by_tokens else None, pool=2, seed=7)

    whole = made()
    wanted = [plain(whole.take(number)) for number in takes]
    stop = data.draw(st.integers(0, len(takes)))
    first = made()
    for number in takes[:stop]:
        first.take(number)
    second = made()
    second.restore(json.loads(json.dumps(first.state())))
    assert [plain(second.take(number)) for number in takes[stop:]] == wanted[stop:]
    assert second.state() == whole.state()


def test_taking_never_mixes_two_epochs() -> None:
    order = Order([1] * 10, batch_size=2, seed=0)
    assert [len(order.take(3)) for _ in range(4)] == [3, 2, 3, 2]
    assert order.state() == {"epoch": 2, "batch": 0}


def test_sorting_in_pools_saves_padding_and_still_shuffles() -> None:
    def padded(order: Order, epoch: int) -> float:
        cells = sum(len(batch) * int(order.lengths[batch].max()) for batch in order.batches(epoch))
        return 1 - int(order.lengths.sum()) / cells

    assert padded(Order(LENGTHS, batch_size=16, pool=1), 0) > 0.8        # measured: 0.88
    assert padded(Order(LENGTHS, batch_size=16), 0) < 0.25               # measured: 0.18
    partners = [{frozenset(batch) for batch in plain(Order(LENGTHS, batch_size=16).batches(epoch))} for epoch in (0, 1)]
    assert not partners[0] & partners[1]
    lengths = [numpy.median([LENGTHS[i] for i in batch]) for batch in plain(Order(LENGTHS, batch_size=16).batches(0))]
    assert abs(numpy.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.3          # short batches don't come first


def test_every_example_comes_first_equally_often() -> None:
    first = numpy.bincount([int(Order([1] * 11, batch_size=11, pool=1, seed=seed).batches(0)[0][0]) for seed in range(2200)], minlength=11)
    assert ((first - 200) ** 2 / 200).sum() < 29.6                       # chi-square, 10 degrees of freedom: p = 0.001


def test_nothing_to_visit_and_empty_batches_are_refused() -> None:
    with pytest.raises(DataError, match="No examples"):
        Order([])
    for choice in ({"batch_size": 0}, {"token_budget": 0}, {"pool": -1}):
        with pytest.raises(ConfigError, match="must be 1 or more"):
            Order([1], **choice)
