"""Texts to vectors, in bulk: sorted by length within a window, packed without padding, streamed in their order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.text.encoding import Encoding, Tokenizer
from fishpaw.weights.load import load

__all__ = ["Pool", "encode", "packed", "stream"]

Pool = Literal["first", "mean", "pooler"]
WINDOW = 2048
"""Texts that are sorted together: memory grows with this, not with their number."""


def encode(
    texts: Iterable[str],
    model: str | Path | tuple[Transformer, Tokenizer],
    *,
    pool: Pool = "mean",
    max_length: int | None = None,
    tokens: int = 4096,
    progress: bool | None = None,
) -> Tensor:
    """A vector a text, [texts d] in fp32, in their order.

    model: a name for fp.load, or a model and its tokenizer (prepare it for speed: model.prepare()). pool: "mean" of the tokens, the
    "first" one, or the checkpoint's "pooler". max_length: in tokens; default what the model reads. tokens: a batch. progress: a bar;
    None: on a terminal. Errors: those of fp.load; ConfigError for a pooler that isn't there.
    """
    pair = load(model) if isinstance(model, str | Path) else model
    shown = _bar(texts, progress)
    pieces = list(stream(shown, pair, pool=pool, max_length=max_length, tokens=tokens))
    return torch.cat(pieces) if pieces else torch.empty(0, pair[0].config.hidden_size)


def stream(
    texts: Iterable[str], model: tuple[Transformer, Tokenizer], *, pool: Pool = "mean", max_length: int | None = None, tokens: int = 4096
) -> Iterator[Tensor]:
    """As `encode`, [m d] for the next m texts at a time, in constant memory."""
    network, tokenizer = model
    if pool not in ("first", "mean", "pooler"):
        raise ConfigError(f"pool is {pool!r}.", fix='Choose "mean", "first" or "pooler".')
    if pool == "pooler" and "pooler" not in network.heads:
        raise ConfigError("The model has no pooler.", fix='Choose pool="mean" or "first".')
    limit = network.position.length
    length = limit if max_length is None else max_length if limit is None else min(limit, max_length)
    source = iter(texts)
    while window := list(islice(source, WINDOW)):
        encodings = [one if one.ids else _lone(tokenizer.pad_id) for one in tokenizer.encode_batch(window, max_length=length)]
        yield _vectors(network, encodings, pool, tokens)


def packed(encodings: Sequence[Encoding], *, segments: bool, tokens: int, device: torch.device) -> Iterator[tuple[list[int], Batch]]:
    """Batches of about `tokens` tokens without padding, the longest texts first, each with the places of its texts."""
    chosen: list[int] = []
    filled = 0
    for index in sorted(range(len(encodings)), key=lambda index: -len(encodings[index].ids)):
        length = len(encodings[index].ids)
        if chosen and filled + length > tokens:
            yield chosen, _batch([encodings[one] for one in chosen], segments, device)
            chosen, filled = [], 0
        chosen.append(index)
        filled += length
    if chosen:
        yield chosen, _batch([encodings[one] for one in chosen], segments, device)


def _batch(encodings: Sequence[Encoding], segments: bool, device: torch.device) -> Batch:
    ids = [torch.tensor(one.ids) for one in encodings]
    return Batch.packed(ids, segments=[torch.tensor(one.segments) for one in encodings] if segments else None).to(device)


def _vectors(model: Transformer, encodings: Sequence[Encoding], pool: Pool, tokens: int) -> Tensor:
    """[m d] on the CPU, in the order of the encodings."""
    weight = model.embedding.tokens.weight
    vectors = torch.empty(len(encodings), model.config.hidden_size)
    none = torch.empty(0, dtype=torch.long, device=weight.device)
    with torch.inference_mode(), model.evaluating():
        for chosen, batch in packed(encodings, segments=model.config.segments > 1, tokens=tokens, device=weight.device):
            out = model(batch, logits_at=none)
            if pool == "pooler":
                found = out.pooled
            elif pool == "first":
                found = out.hidden[batch.first]
            else:
                count = torch.bincount(batch.row, minlength=len(chosen))
                total = torch.zeros(len(chosen), model.config.hidden_size, device=weight.device)
                found = total.index_add_(0, batch.row, out.hidden.float()) / count[:, None]
            vectors[chosen] = found.float().cpu()
    return vectors


def _lone(token: int) -> Encoding:
    return Encoding([token], [0], [""], [(0, 0)])                    # byte-level BPE makes no token of an empty text


def _bar(texts: Iterable[str], progress: bool | None) -> Iterable[str]:
    if not (sys.stderr.isatty() if progress is None else progress):
        return texts
    from tqdm.auto import tqdm

    bar: Iterable[str] = tqdm(texts, unit="text", dynamic_ncols=True)
    return bar
