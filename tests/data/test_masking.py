"""Masking: the shares of the paper, special tokens left alone, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from fishpaw.data.masking import mask_tokens
from fishpaw.errors import ConfigError

torch.set_num_threads(1)
IDS = torch.randint(5, 1009, (100_003,), generator=torch.Generator().manual_seed(0))


def masked(ids=IDS, seed=1, **options):
    return mask_tokens(ids, **{"mask_id": 4, "vocab_size": 1009, "generator": torch.Generator().manual_seed(seed), **options})


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_shares_are_those_of_the_paper(rate):
    seen, places = masked(rate=rate)
    found = seen[places]
    shares = [len(places) / len(IDS), (found == 4).float().mean(), (found == IDS[places]).float().mean()]
    for share, expected, count in zip(shares, [rate, 0.8, 0.1 + 0.1 / 1004], [len(IDS), *[len(places)] * 2], strict=True):
        assert abs(float(share) - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    untouched = torch.ones(len(IDS), dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(seen[untouched], IDS[untouched]) and places.tolist() == sorted(set(places.tolist()))
    replaced = found[(found != 4) & (found != IDS[places])]
    assert int(replaced.min()) >= 5 and int(replaced.max()) < 1009 and len(replaced.unique()) > 500


def test_special_tokens_are_never_chosen():
    ids = torch.arange(5).repeat(1000)
    seen, places = masked(ids)
    assert torch.equal(seen, ids) and len(places) == 0
    assert len(masked(ids, ordinary=2)[1]) > 0                       # the planted fault: a special token that counts as ordinary


def test_a_seed_gives_the_same_again_and_another_one_others():
    assert all(torch.equal(one, other) for one, other in zip(masked(), masked(), strict=True))
    assert len(masked()[1]) != len(masked(seed=2)[1])


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"rate": 1.0}, {"rate": float("nan")}, {"ordinary": 1009}, {"ordinary": -1}])
def test_what_can_not_be_is_refused(options):
    with pytest.raises(ConfigError):
        masked(**options)
