"""Skip-gram with negative sampling over the characters of a text, and its exact held-out likelihood (arXiv:1310.4546, arXiv:1301.3781).

Words are Chinese characters; whatever else stands in a text is a break, over which no window reaches. Training learns
u[w] . v[c] = ln p(c | w) - ln(k q(c)), q the distribution of noise and k its words a pair (Levy and Goldberg, NIPS 2014), so p(c | w) is
q(c) exp(u[w] . v[c]) made to sum to 1, and a held-out pair has a likelihood that doesn't depend on noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fishpaw.data.records import read_jsonl
from fishpaw.errors import DataError

__all__ = ["Characters", "characters", "draw_pairs", "held_out", "noise", "train", "unigram"]

_FIRST, _LAST = 0x4E00, 0x9FFF


@dataclass(frozen=True)
class Characters:
    """A text as numbers. train, held [t] int64: a character's number, -1 where there is a break; counts [v]: how often each is in train,
    the most frequent first."""

    train: Tensor
    held: Tensor
    counts: Tensor


def characters(path: Path, *, most: int, least: int = 20) -> Characters:
    """The first `most` letters of a .jsonl of {"text": …}: every tenth record is held out. A character that comes fewer than `least` times
    is left out, and its neighbours come together. DataError: no such file, no field `text`, or fewer than two characters to learn."""
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    read = 0
    for number, record in enumerate(read_jsonl(path)):
        text = record.fields.get("text")
        if not isinstance(text, str):
            raise DataError(f'{record.file}, line {record.line}: no field "text".', fix='Give one {"text": …} a line.')
        points = np.frombuffer(text[: most - read].encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)  # [t]
        parts[number % 10 == 9].append(np.append(np.where((points >= _FIRST) & (points <= _LAST), points, -1), -1))
        read += len(points)
        if read >= most:
            break
    learnt, held = (np.concatenate([*part, np.array([-1])]) for part in parts)
    points, counts = np.unique(learnt[learnt >= 0], return_counts=True)
    frequent = counts >= least
    order = np.argsort(-counts[frequent], kind="stable")
    if len(order) < 2:
        raise DataError(f"{path}: {len(order)} Chinese characters come {least} times.", fix="Give a longer text, or a lower `least`.")
    table = np.full(_LAST + 2, -2)                                    # the last entry is that of a break, -1
    table[points[frequent][order]] = np.arange(len(order))
    table[-1] = -1
    ids = [torch.from_numpy(one[one != -2]) for one in (table[learnt], table[held])]
    return Characters(ids[0], ids[1], torch.from_numpy(counts[frequent][order]))


def draw_pairs(ids: Tensor, count: int, *, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """count pairs of a character and another of its stretch, at most `window` away, each distance as likely: [count] both. ids [t]."""
    stretch = (ids < 0).cumsum(0)                                                      # [t]
    centres, contexts, found = [], [], 0
    chunk = min(2 * count, 2**20)                                     # millions of pairs need no tensor of all tries
    for _ in range(1000 + count // 2**16):
        at = torch.randint(0, len(ids), (chunk,), generator=generator)
        distance = torch.randint(1, window + 1, (chunk,), generator=generator)
        side = 2 * torch.randint(0, 2, (chunk,), generator=generator) - 1
        other = at + side * distance
        inside = (other >= 0) & (other < len(ids))
        at, other = at[inside], other[inside]
        kept = (ids[at] >= 0) & (ids[other] >= 0) & (stretch[at] == stretch[other])
        centres.append(ids[at[kept]])
        contexts.append(ids[other[kept]])
        found += len(centres[-1])
        if found >= count:
            return torch.cat(centres)[:count], torch.cat(contexts)[:count]
    raise DataError(f"{found} pairs in a text of {len(ids)} letters.", fix="Give a text with longer stretches of Chinese.")


def noise(counts: Tensor) -> Tensor:
    """q, counts^(3/4) made to sum to 1: [v] -> [v] fp64."""
    raised = counts.double() ** 0.75
    return raised / raised.sum()


def train(
    text: Characters, size: int, *, steps: int, batch: int, window: int, negatives: int = 5, shared: int = 128, rate: float = 0.01,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """u, v [v size] fp32 after `steps` steps of Adam on `batch` pairs each; the rate falls to 0 in a line.

    Loss of a pair: -ln sigmoid(u . v) - negatives times the mean of ln sigmoid(-u . v') over noise; a step's pairs share `shared` noise
    words, so that their scores are one product. The same seed draws the same pairs whatever the size.
    """
    generator = torch.Generator().manual_seed(seed)
    q = noise(text.counts)
    pool = draw_pairs(text.train, steps * batch, window=window, generator=generator)
    words = torch.multinomial(q, steps * shared, replacement=True, generator=generator).split(shared)
    u = ((torch.rand(len(q), size, generator=generator) - 0.5) / size).requires_grad_()
    v = torch.zeros(len(q), size).requires_grad_()
    optimizer = torch.optim.Adam([u, v], lr=rate)
    for step, (centre, context, false) in enumerate(zip(pool[0].split(batch), pool[1].split(batch), words, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        hidden = u[centre]                                                             # [b size]
        true_scores = (hidden * v[context]).sum(-1)                                    # [b]
        false_scores = hidden @ v[false].T                                             # [b shared]
        loss = softplus(-true_scores).mean() + negatives * softplus(false_scores).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return u.detach(), v.detach()


def held_out(u: Tensor, v: Tensor, counts: Tensor, pairs: tuple[Tensor, Tensor]) -> float:
    """The mean of -ln p(c | w), nats, over pairs [n]: p(c | w) proportional to q(c) exp(u[w] . v[c])."""
    log_noise = noise(counts).log().to(u.dtype)
    total = 0.0
    for centre, context in zip(pairs[0].split(512), pairs[1].split(512), strict=True):
        logits = u[centre] @ v.T + log_noise                                           # [b v]
        total += float(torch.nn.functional.cross_entropy(logits, context, reduction="sum"))
    return total / len(pairs[0])


def unigram(counts: Tensor, pairs: tuple[Tensor, Tensor]) -> float:
    """The same of a model that knows only how frequent characters are, nats."""
    return float(-(counts.double() / counts.sum()).log()[pairs[1]].mean())
