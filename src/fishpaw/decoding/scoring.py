"""How probable given continuations of a prompt are: log p(continuation | prompt), a token each. A prompt is read once for all of its
continuations, which are rows over its stored keys: candidates ranked, answers chosen, perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import check_whole
from fishpaw.errors import DataError

if TYPE_CHECKING:
    from fishpaw.contracts import Stepper

__all__ = ["ROWS", "score"]

ROWS = 256
LOGITS = 2**26                                                   # made at a time: 256 MB in fp32 (but one column of all rows at least)

Pair = tuple[int, int]
"""A prompt and which of its continuations."""


@torch.no_grad()
def score(stepper: Stepper, prompts: Batch, continuations: Sequence[Sequence[Sequence[int]]], encoder_batch: Batch | None = None, *,
          rows: int = ROWS) -> list[list[Hypothesis]]:
    """log p of each continuation (a list of ids) of each prompt -> a Hypothesis each, in the order given; its score is their sum.

    prompts: padded, as stepper.start reads them. A prompt may have any number of continuations, none too, of any lengths but 0. Nothing is
    added: give the end token where it belongs to what is scored. The last token of each is never fed: what has one token costs no more
    than its prompt. rows: live at a time, from 1; a prompt with more continuations (of two tokens and more) than that is read again for
    each so many. Log-probabilities are in fp32 at least.
    Raises DataError for an empty continuation, an id outside the vocabulary, another number of groups than of prompts.
    """
    check_whole("rows", rows, 1, None)
    _check(prompts, continuations)
    found: list[list[Hypothesis]] = [[] for _ in continuations]
    for pairs in _parts(continuations, rows):
        which = list(dict.fromkeys(prompt for prompt, _ in pairs))
        place = {prompt: row for row, prompt in enumerate(which)}
        texts = [continuations[prompt][number] for prompt, number in pairs]
        logits = stepper.start(_rows(prompts, which), None if encoder_batch is None else _rows(encoder_batch, which))     # [p v]
        _check_ids(pairs, texts, logits.shape[-1])
        owner = torch.tensor([place[prompt] for prompt, _ in pairs], device=logits.device)                    # [r]
        for (prompt, _), text, row in zip(pairs, texts, _read(stepper, logits, owner, texts).tolist(), strict=True):
            values = tuple(row[: len(text)])
            found[prompt].append(Hypothesis(tuple(text), values, sum(values), prompt, ended=False, closed=False))
    return found


def _read(stepper: Stepper, logits: Tensor, owner: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """logits [p v] after the prompts, owner [r]: the prompt of each text -> log p of each token of each text, [r u]; 0 or anything behind
    the shorter ones."""
    fed = torch.tensor([len(text) - 1 for text in texts], device=logits.device)                               # [r]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=logits.device)         # [r u]
    total = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1)                         # [p]
    first = logits[owner, ids[:, 0]] - total[owner]                                                           # [r]
    logs = first.new_zeros(ids.shape)                                                                         # [r u]
    logs[:, 0] = first
    live, done = fed.nonzero()[:, 0], 0                                                                       # [r'] rows that go on
    moved = owner[live]                                                                                       # fan out; the others leave
    while len(live):
        stepper.select(moved)
        end = _until(done, fed[live], owner[live], most=done + max(1, LOGITS // (len(live) * logits.shape[-1])))
        logits = stepper.step(ids[live, done:end])                                                            # [r' w v]
        logits = logits.to(logs.dtype)
        chosen = logits.gather(2, ids[live, done + 1 : end + 1, None])[..., 0]                                # [r' w]
        logs[live, done + 1 : end + 1] = chosen - logits.logsumexp(-1)
        done = end
        moved = (fed[live] > done).nonzero()[:, 0]
        live = live[moved]
    return logs


def _until(done: int, fed: Tensor, owner: Tensor, most: int) -> int:
    """How far to read rows of `fed` tokens [r] of the prompts `owner` [r] that have read `done`, before those at their end leave.

    What stands behind a shorter row is padding: at most as much as the row itself, and within what the longest of the same prompt reads,
    so that no prompt runs out of positions by what is read for another one.
    """
    longest = fed.new_zeros(int(owner.max()) + 1).scatter_reduce(0, owner, fed, "amax")                       # [p] 0: none left
    return min(int(longest[longest > 0].min()), 2 * int(fed.min()), most)


def _parts(continuations: Sequence[Sequence[Sequence[int]]], rows: int) -> Iterator[list[Pair]]:
    """All pairs in order, cut where more than `rows` of them would have a second token."""
    part: list[Pair] = []
    live = 0
    for prompt, group in enumerate(continuations):
        for number, text in enumerate(group):
            if live + (len(text) > 1) > rows:
                yield part
                part, live = [], 0
            part.append((prompt, number))
            live += len(text) > 1
    if part:
        yield part


def _rows(batch: Batch, which: Sequence[int]) -> Batch:
    """These rows of a padded batch, without the columns that only the others needed: as wide as the longest."""
    assert batch.shape is not None
    if len(which) == batch.shape[0]:
        return batch
    rows = torch.tensor(which, device=batch.ids.device)
    keep = batch.rows[0].keep[rows]
    columns = keep.any(0).nonzero()[:, 0]

    def cut(laid: Tensor) -> Tensor:
        return laid[rows, int(columns[0]) : int(columns[-1]) + 1]

    return Batch.padded(
        cut(batch.ids.view(batch.shape)),
        keep=None if batch.dense else cut(batch.rows[0].keep),
        segments=None if batch.segments is None else cut(batch.segments.view(batch.shape)),
        positions=cut(batch.rows[0].position),
        condition=None if batch.condition is None else batch.condition[rows],
    )


def _check(prompts: Batch, continuations: Sequence[Sequence[Sequence[int]]]) -> None:
    if len(continuations) != len(prompts.first):
        raise DataError(f"{len(continuations)} groups of continuations for {len(prompts.first)} prompts.", fix="Give one for each prompt.")
    for prompt, group in enumerate(continuations):
        for number, text in enumerate(group):
            if not len(text):
                raise DataError(f"Continuation {number} of prompt {prompt} is empty.", fix="Give it at least one token, or leave it out.")


def _check_ids(pairs: Sequence[Pair], texts: Sequence[Sequence[int]], size: int) -> None:
    for (prompt, number), text in zip(pairs, texts, strict=True):
        if not 0 <= min(text) <= max(text) < size:
            what = f"Continuation {number} of prompt {prompt} has token ids from {min(text)} to {max(text)}, but the vocabulary has {size}."
            raise DataError(what, fix=f"Give 0 to {size - 1}.")
