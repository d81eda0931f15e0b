"""Texts to vectors, in bulk: sorted by length within a window, packed without padding, streamed in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fishpaw.contracts import Batch, Output
from fishpaw.data.collate import pack
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.text.encoding import Encoding, Tokenizer
from fishpaw.weights.load import load

__all__ = ["Pool", "bar", "compute", "encode", "encoded", "packed", "refuse_decoder", "stream", "windows"]

Pool = Literal["first", "mean", "pooler"]
Read = Callable[[Output, Batch], Tensor]
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
    None: on a terminal. Errors: those of fp.load; ConfigError for a pooler that isn't there or an encoder-decoder; DataError for one
    string.
    """
    pair = load(model) if isinstance(model, str | Path) else model
    pieces = list(stream(texts, pair, pool=pool, max_length=max_length, tokens=tokens, progress=progress))
    return torch.cat(pieces) if pieces else torch.empty(0, pair[0].config.hidden_size)


def stream(
    texts: Iterable[str],
    model: tuple[Transformer, Tokenizer],
    *,
    pool: Pool = "mean",
    max_length: int | None = None,
    tokens: int = 4096,
    progress: bool | None = False,
) -> Iterator[Tensor]:
    """As `encode`, [m d] for the next m texts at a time, in constant memory."""
    network, tokenizer = model
    refuse_decoder(network, "make vectors of texts")
    if pool not in ("first", "mean", "pooler"):
        raise ConfigError(f"pool is {pool!r}.", fix='Choose "mean", "first" or "pooler".')
    if pool == "pooler" and "pooler" not in network.heads:
        raise ConfigError("The model has no pooler.", fix='Choose pool="mean" or "first".')
    limit = network.longest
    length = limit if max_length is None else max_length if limit is None else min(limit, max_length)
    with bar(texts, progress) as tell:
        for encodings in windows(texts, None, tokenizer, max_length=length):
            yield compute(network, encodings, _READ[pool], tokens=tokens, tell=tell)


def refuse_decoder(model: Transformer, what: str) -> None:
    """ConfigError for an encoder-decoder, whose forward reads two texts."""
    if model.encoder is not None:
        fix = 'Load its encoder alone: family="t5_encoder" of a T5, "t5.1.1_encoder" or "mt5_encoder" of its successors.'
        raise ConfigError(f"An encoder-decoder can't {what}.", fix=fix)


def windows(
    texts: Iterable[str], pairs: Iterable[str] | None, tokenizer: Tokenizer, *, max_length: int | None
) -> Iterator[list[Encoding]]:
    """The next WINDOW texts (or pairs of texts) at a time, encoded."""
    if isinstance(texts, str) or isinstance(pairs, str):
        raise DataError("Where a list of texts belongs stands one string.", fix="Give a list of texts.")
    source, other = iter(texts), None if pairs is None else iter(pairs)
    while True:
        first, second = list(islice(source, WINDOW)), None if other is None else list(islice(other, WINDOW))
        if not first and not second:
            return
        yield encoded(tokenizer, first, second, max_length=max_length)


def encoded(tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, *, max_length: int | None) -> list[Encoding]:
    """As the tokenizer's encode_batch; a text without a token (byte-level BPE makes none of an empty one) is the padding token alone."""
    lone = Encoding([tokenizer.pad_id], [0], [""], [(0, 0)])
    return [one if one.ids else lone for one in tokenizer.encode_batch(texts, pairs, max_length=max_length)]


def compute(
    model: Transformer, encodings: Sequence[Encoding], read: Read, *, tokens: int, tell: Callable[[int], object] = lambda count: None
) -> Tensor:
    """What `read` takes from the output of each batch of about `tokens` tokens, a row a text: [m c] in fp32 on the CPU, in the order of
    the encodings. In evaluation mode, without gradients or logits. tell(n): n more texts are done."""
    device = next(model.parameters()).device
    none = torch.empty(0, dtype=torch.long, device=device)
    places: list[int] = []
    pieces: list[Tensor] = []
    with torch.inference_mode(), model.evaluating():
        for chosen, batch in packed(encodings, segments=model.config.segments > 1, tokens=tokens, device=device):
            pieces.append(read(model(batch, logits_at=none), batch).float())
            places += chosen
            tell(len(chosen))
        found = torch.cat(pieces).cpu()
        return torch.empty_like(found).index_copy_(0, torch.tensor(places), found)


def packed(encodings: Sequence[Encoding], *, segments: bool, tokens: int, device: torch.device) -> Iterator[tuple[list[int], Batch]]:
    """Batches of about `tokens` tokens without padding, the longest texts first, each with the places of its texts."""
    chosen: list[int] = []
    filled = 0
    for index in sorted(range(len(encodings)), key=lambda index: -len(encodings[index].ids)):
        length = len(encodings[index].ids)
        if chosen and filled + length > tokens:
            yield chosen, pack([encodings[one] for one in chosen], segments=segments).to(device)
            chosen, filled = [], 0
        chosen.append(index)
        filled += length
    if chosen:
        yield chosen, pack([encodings[one] for one in chosen], segments=segments).to(device)


@contextmanager
def bar(texts: Iterable[object], progress: bool | None) -> Iterator[Callable[[int], object]]:
    """tell(n): n more texts are done. progress: show a bar; None: on a terminal, once it has taken a second, and not for long after."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    total, asked = len(texts) if isinstance(texts, Sized) else None, progress is True
    with tqdm(total=total, unit="text", dynamic_ncols=True, delay=0 if asked else 1, leave=asked) as shown:
        yield shown.update


def _mean(output: Output, batch: Batch) -> Tensor:
    count = torch.bincount(batch.row, minlength=len(batch.first))
    total = torch.zeros(len(batch.first), output.hidden.shape[-1], device=output.hidden.device)
    return total.index_add_(0, batch.row, output.hidden.float()) / count[:, None]


def _pooled(output: Output, batch: Batch) -> Tensor:
    assert output.pooled is not None
    return output.pooled


_READ: dict[Pool, Read] = {"mean": _mean, "first": lambda output, batch: output.hidden[batch.first], "pooler": _pooled}
