"""Skip-gram: what is read, which pairs are drawn, that training finds what can be known exactly, and a likelihood that sums to 1."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fishpaw.errors import DataError
from fishpaw.lab.skip_gram import Characters, characters, draw_pairs, held_out, noise, train, unigram

torch.set_num_threads(1)


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def test_letters_become_numbers_and_all_else_breaks(tmp_path: Path) -> None:
    path = written(tmp_path / "docs.jsonl", ["天天地。天罕x地\n"] * 1 + ["地天"] * 8 + ["天罕地,天"])
    text = characters(path, most=1000, least=2)
    assert text.counts.tolist() == [11, 10]                           # 天, 地; 罕 comes once in what is learnt
    assert text.train.tolist()[:9] == [0, 0, 1, -1, 0, -1, 1, -1, -1] and text.held.tolist() == [0, 1, -1, 0, -1, -1]
    assert characters(path, most=7, least=1).train.tolist() == [0, 0, 1, -1, 0, 2, -1, -1, -1]


def test_what_can_t_be_read_is_an_error_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        characters(tmp_path / "absent.jsonl", most=10)
    with pytest.raises(DataError, match='line 1: no field "text"'):
        path = tmp_path / "other.jsonl"
        path.write_text('{"body": "天"}\n', encoding="utf-8")
        characters(path, most=10)
    with pytest.raises(DataError, match="1 Chinese characters"):
        characters(written(tmp_path / "short.jsonl", ["天天 latin"]), most=10, least=2)
    with pytest.raises(DataError, match="pairs"):
        draw_pairs(torch.tensor([0, -1, 1, -1]), 3, window=2, generator=torch.Generator())


def test_pairs_stay_within_their_stretch_and_window() -> None:
    ids = torch.tensor([0, 1, 2, -1, 3, 4, -1, 5])
    centres, contexts = draw_pairs(ids, 5003, window=2, generator=torch.Generator().manual_seed(0))
    assert len(centres) == len(contexts) == 5003
    found = set(zip(centres.tolist(), contexts.tolist(), strict=True))
    assert found == {(a, b) for a in range(3) for b in range(3) if a != b} | {(3, 4), (4, 3)}
    near, _ = draw_pairs(ids, 5003, window=1, generator=torch.Generator().manual_seed(0))
    assert (near == 1).float().mean() == pytest.approx(1 / 3, abs=0.03)                 # of 6 ordered neighbours; 4.5 standard errors


def chain() -> Characters:
    """A text in which 0 and 1 are always beside each other, 2 and 3, too; pairs are equally frequent."""
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(0, 2, (3000,), generator=generator)
    ids = torch.stack([2 * which, 2 * which + 1, torch.full_like(which, -1)], 1).flatten()
    return Characters(ids, ids, torch.bincount(ids[ids >= 0]))


def test_training_finds_the_likelihood_that_counting_finds() -> None:
    """Each character has one neighbour: the best loss is 0, without vectors it is ln 4, and where one dimension fits two groups, too."""
    text = chain()
    pairs = draw_pairs(text.held, 997, window=1, generator=torch.Generator().manual_seed(1))
    assert unigram(text.counts, pairs) == pytest.approx(math.log(4), abs=0.01)
    losses = {}
    for size in (1, 8):
        u, v = train(text, size, steps=300, batch=64, window=1, rate=0.05, seed=0)
        losses[size] = held_out(u, v, text.counts, pairs)
    assert losses[8] < 0.05 and losses[8] < losses[1]
    planted = held_out(u, v.roll(1, 0), text.counts, pairs)           # the vectors of other characters
    assert planted > 2


def test_the_loss_learns_conditional_probabilities_and_not_only_who_is_beside_whom() -> None:
    """0 is followed by 1 with 0.8 and by 2 with 0.2: the held-out loss comes to the entropy of that."""
    generator = torch.Generator().manual_seed(0)
    follower = 1 + (torch.rand(20_000, generator=generator) < 0.2).long()
    ids = torch.stack([torch.zeros_like(follower), follower, torch.full_like(follower, -1)], 1).flatten()
    text = Characters(ids, ids, torch.bincount(ids[ids >= 0]))
    u, v = train(text, 4, steps=400, batch=256, window=1, rate=0.05, seed=0)
    logits = u[0] @ v.T + noise(text.counts).log().float()
    shares = logits.softmax(-1)
    assert shares[1].item() == pytest.approx(0.8, abs=0.04) and shares[2].item() == pytest.approx(0.2, abs=0.04)
    every = torch.arange(3)
    total = sum(math.exp(-held_out(u, v, text.counts, (torch.zeros(1, dtype=torch.long), one[None]))) for one in every)
    assert total == pytest.approx(1, abs=1e-5)                        # a likelihood: it sums to 1


def test_the_same_seed_trains_the_same_and_noise_is_a_distribution() -> None:
    text = chain()
    first, second, other = (train(text, 3, steps=5, batch=16, window=1, seed=seed)[0] for seed in (0, 0, 1))
    assert first.equal(second) and not first.equal(other)
    q = noise(torch.tensor([16, 81, 1]))
    torch.testing.assert_close(q, torch.tensor([8.0, 27.0, 1.0], dtype=torch.float64) / 36)
