"""What a model is asked while it is pretrained: a piece of text becomes rows of tokens, and each row its questions.

With the mask "unilm" most of them live in one model: a row's segments say who sees whom. All 0: both ways, as BERT reads; all 1 after the
first token: as GPT; 0 then 1: UniLM (arXiv:1905.03197). So a batch may mix them, and is still one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy
from numpy.typing import ArrayLike, NDArray

from fishpaw import checks
from fishpaw.data.masking import mask_tokens
from fishpaw.data.shards import Piece
from fishpaw.data.spans import choose_spans, count_spans
from fishpaw.errors import ConfigError
from fishpaw.switch import nearest

__all__ = [
    "NAMES", "Autoencoding", "Contrastive", "Masked", "NextSentence", "NextToken", "Objective", "Row", "SpanCorruption", "Special", "UniLM",
    "parse",
]  # fmt: skip

Ids = NDArray[numpy.int64]
_NONE: Ids = numpy.empty(0, dtype=numpy.int64)
_TWO_WAYS = ("full", "unilm")
_WRITER = ("mlm or lm",)


@dataclass(frozen=True)
class Special:
    """The ids that rows are built of, and where ordinary ones begin; None for those that the vocabulary lacks. sep: what ends a text.
    stops: the ids that end a sentence. sentinels: those that stand for spans, in turn. start: what the answers of a decoder with an encoder
    begin with, None in a single stack."""

    cls: int | None
    sep: int
    mask: int | None
    vocab_size: int
    ordinary: int = 5
    stops: frozenset[int] = frozenset()
    sentinels: tuple[int, ...] = ()
    start: int | None = None


@dataclass(frozen=True)
class Row:
    """One sequence and its questions: at the places `at` [m] the tokens `targets` [m] are to be named. follows: whether its second part
    follows its first one (NSP). view: rows of one piece with this set are each other's likeness (contrastive). source: what the encoder
    reads beside it, where there is one."""

    ids: Ids
    segments: Ids
    at: Ids = field(default_factory=lambda: _NONE)
    targets: Ids = field(default_factory=lambda: _NONE)
    follows: bool | None = None
    view: bool = False
    source: Ids | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def asks(self) -> bool:
        """Whether it has a question."""
        return bool(len(self.at)) or self.follows is not None or self.view


class Objective(Protocol):
    """rows(piece, special) -> its rows, a function of the piece alone, whose generator draws what is random.

    room(length): tokens of a piece that fit into a row of `length`. weight: how much one of its questions counts beside one of the others'.
    What it needs of a model: heads, each one or one "or" another; clocks: of the mask, one of these, or "encoder-decoder"; streams:
    likewise ("positions": T-TA). tokens: of the vocabulary, fields of Special, likewise.
    """

    heads: ClassVar[tuple[str, ...]]
    clocks: ClassVar[tuple[str, ...]]
    streams: ClassVar[tuple[str, ...]]
    tokens: ClassVar[tuple[str, ...]]

    @property
    def weight(self) -> float: ...
    def room(self, length: int) -> int: ...
    def rows(self, piece: Piece, special: Special) -> Sequence[Row]: ...


@dataclass(frozen=True)
class Masked:
    """BERT's: find the hidden tokens again, [CLS] piece [SEP]; whole words where the shards know them and `words` says so."""

    rate: float = 0.15
    words: bool = False
    weight: float = 1.0
    heads: ClassVar[tuple[str, ...]] = ("mlm",)
    clocks: ClassVar[tuple[str, ...]] = _TWO_WAYS
    streams: ClassVar[tuple[str, ...]] = ("tokens",)
    tokens: ClassVar[tuple[str, ...]] = ("cls", "mask")

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def room(self, length: int) -> int:
        """All but [CLS] and [SEP]."""
        return length - 2

    def rows(self, piece: Piece, special: Special) -> Sequence[Row]:
        """One row, all of segment 0."""
        seen, places = _hidden(piece.ids, _words(piece, self.words), piece.generator(), self.rate, special)
        ids = _framed(seen, special)
        return [Row(ids, numpy.zeros_like(ids), places + 1, piece.ids[places])]


@dataclass(frozen=True)
class NextSentence:
    """BERT's second question (arXiv:1810.04805, section 3.1): [CLS] a [SEP] b [SEP], where b is what follows a or, half of the time, as
    many tokens from elsewhere; and Masked's of both. a ends with a sentence, where one ends in the piece.

    sentence: how much that question counts beside one token; about as many as are hidden in a row, which is BERT's sum of two means.
    """

    rate: float = 0.15
    words: bool = False
    weight: float = 1.0
    sentence: float = 16.0
    heads: ClassVar[tuple[str, ...]] = ("mlm", "pooler", "nsp")
    clocks: ClassVar[tuple[str, ...]] = ("full",)
    streams: ClassVar[tuple[str, ...]] = ("tokens",)
    tokens: ClassVar[tuple[str, ...]] = ("cls", "mask")

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        checks.number("The weight of a sentence", self.sentence)

    def room(self, length: int) -> int:
        """All but [CLS] and two [SEP]."""
        return length - 3

    def rows(self, piece: Piece, special: Special) -> Sequence[Row]:
        """One row, or none of a piece of one token."""
        if len(piece.ids) < 2:
            return []
        generator = piece.generator()
        inner = _ends(piece.ids, special)
        inner = inner[inner < len(piece.ids)]
        cut = int(generator.choice(inner)) if len(inner) else int(generator.integers(1, len(piece.ids)))
        number, other, start = len(piece.ids) - cut, piece, cut
        if generator.random() < 0.5:
            other = piece.elsewhere(generator)
        follows = other.index == piece.index                         # a piece may draw itself
        if not follows:
            starts = numpy.concatenate([[0] if other.begins else _NONE, _ends(other.ids, special)])
            fitting = starts[starts <= len(other.ids) - number]
            start = int(generator.choice(fitting)) if len(fitting) else max(0, len(other.ids) - number)
        both = numpy.concatenate([piece.ids[:cut], other.ids[start : start + number]])
        flags = _words(piece, self.words)
        if flags is not None and other.words is not None:
            flags = numpy.concatenate([flags[:cut], other.words[start : start + number]])
            flags[cut] = True
        seen, places = _hidden(both, flags, generator, self.rate, special)
        ids = numpy.concatenate([_framed(seen[:cut], special), seen[cut:], [special.sep]])
        segments = (numpy.arange(len(ids)) > cut + 1).astype(numpy.int64)
        return [Row(ids, segments, places + 1 + (places >= cut), both[places], follows=follows)]


@dataclass(frozen=True)
class Autoencoding:
    """T-TA's: every token is named, each from all others, in one pass (arXiv:2004.08097): [CLS] piece [SEP]. For a model that never sees a
    token at its own place: stream "positions" and a mask that excludes oneself."""

    weight: float = 1.0
    heads: ClassVar[tuple[str, ...]] = _WRITER
    clocks: ClassVar[tuple[str, ...]] = ("full",)
    streams: ClassVar[tuple[str, ...]] = ("positions",)
    tokens: ClassVar[tuple[str, ...]] = ("cls",)

    def room(self, length: int) -> int:
        """All but [CLS] and [SEP]."""
        return length - 2

    def rows(self, piece: Piece, special: Special) -> Sequence[Row]:
        """One row; special tokens and [UNK] aren't asked for."""
        places = numpy.flatnonzero(piece.ids >= special.ordinary)
        ids = _framed(piece.ids, special)
        return [Row(ids, numpy.zeros_like(ids), places + 1, piece.ids[places])]


@dataclass(frozen=True)
class NextToken:
    """GPT's: [CLS] piece, and [SEP] where the document ends; each token is asked for the next one. Where the vocabulary lacks a [CLS], what
    ends a text begins it, too."""

    weight: float = 1.0
    heads: ClassVar[tuple[str, ...]] = _WRITER
    clocks: ClassVar[tuple[str, ...]] = ("causal", "unilm")
    streams: ClassVar[tuple[str, ...]] = ("tokens",)
    tokens: ClassVar[tuple[str, ...]] = ()

    def room(self, length: int) -> int:
        """All but [CLS] and [SEP]."""
        return length - 2

    def rows(self, piece: Piece, special: Special) -> Sequence[Row]:
        """One row; of segment 1 from its second token on, which a UniLM reads from left to right."""
        first = special.sep if special.cls is None else special.cls
        ids = numpy.concatenate([[first], piece.ids, [special.sep] if piece.ends else _NONE])
        segments = numpy.ones_like(ids)
        segments[0] = 0
        return [Row(ids, segments, numpy.arange(len(ids) - 1), ids[1:])]


@dataclass(frozen=True)
class UniLM:
    """Read the beginning both ways, write on from it: [CLS] beginning [SEP] rest, and [SEP] where the document ends. The cut is uniform. An
    encoder-decoder reads the beginning with its encoder."""

    weight: float = 1.0
    heads: ClassVar[tuple[str, ...]] = _WRITER
    clocks: ClassVar[tuple[str, ...]] = ("unilm", "encoder-decoder")
    streams: ClassVar[tuple[str, ...]] = ("tokens",)
    tokens: ClassVar[tuple[str, ...]] = ()

    def room(self, length: int) -> int:
        """All but [CLS] and two [SEP]."""
        return length - 3

    def rows(self, piece: Piece, special: Special) -> Sequence[Row]:
        """One row, or none of a piece of one token."""
        if len(piece.ids) < 2:
            return []
        cut = int(piece.generator().integers(1, len(piece.ids)))
        return [_written(piece.ids[:cut], numpy.concatenate([piece.ids[cut:], [special.sep] if piece.ends else _NONE]), special)]


@dataclass(frozen=True)
class SpanCorruption:
    """T5's (arXiv:1910.10683): spans of the text are hidden, each behind a sentinel of its own; written are the sentinels, each with what
    it stood for, one more, and [SEP]. Sentinels are <extra_id_0> … or [unused1] … of the vocabulary; one that has none of them uses
    [MASK] for all, told apart by their order. One stack with the mask "unilm" reads and writes as an encoder-decoder does.
    """

    rate: float = 0.15
    mean: float = 3.0
    weight: float = 1.0
    heads: ClassVar[tuple[str, ...]] = _WRITER
    clocks: ClassVar[tuple[str, ...]] = ("encoder-decoder", "unilm")
    streams: ClassVar[tuple[str, ...]] = ("tokens",)
    tokens: ClassVar[tuple[str, ...]] = ("sentinels or mask",)

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        checks.number("The mean length of a span", self.mean, least=1)

    def room(self, length: int) -> int:
        """What is left beside [CLS], two [SEP], and the sentinels, which stand in both texts."""
        most = length - 3
        while most > 1 and most + 2 * count_spans(most, rate=self.rate, mean=self.mean)[1] + 1 > length - 3:
            most -= 1
        return most

    def rows(self, piece: Piece, special: Special) -> Sequence[Row]:
        """One row, or none of a piece of one token."""
        if len(piece.ids) < 2:
            return []
        most = len(special.sentinels) - 1 if special.sentinels else None
        spans = choose_spans(len(piece.ids), piece.generator(), rate=self.rate, mean=self.mean, most=most)
        sentinels = special.sentinels or [special.mask or 0] * (len(spans) + 1)
        at = 0
        read: list[ArrayLike] = []
        written: list[ArrayLike] = []
        for sentinel, (start, end) in zip(sentinels, spans.tolist(), strict=False):
            read += [piece.ids[at:start], [sentinel]]
            written += [[sentinel], piece.ids[start:end]]
            at = end
        written += [[sentinels[len(spans)]], [special.sep]]
        return [_written(_joined([*read, piece.ids[at:]]), _joined(written), special)]


@dataclass(frozen=True)
class Contrastive:
    """Two texts that belong together are to be nearer than any others of the batch: what stands on either side of a sentence's end, up to
    `longest` tokens each, or, for a share `same` of the pieces, one of them twice, told apart by dropout (SimCSE, arXiv:2104.08821).

    The vectors are what the pooler makes; the loss is losses/contrastive.py's, among the pairs of a batch (of each process its own).
    """

    same: float = 0.5
    temperature: float = 0.05
    longest: int = 32
    weight: float = 10.0
    heads: ClassVar[tuple[str, ...]] = ("pooler",)
    clocks: ClassVar[tuple[str, ...]] = _TWO_WAYS
    streams: ClassVar[tuple[str, ...]] = ("tokens", "positions")
    tokens: ClassVar[tuple[str, ...]] = ("cls",)

    def __post_init__(self) -> None:
        checks.number("The share of pairs of one text", self.same, least=0, most=1)
        checks.number("The temperature", self.temperature)
        checks.whole("The longest text of a pair", self.longest, least=4)

    def room(self, length: int) -> int:
        """All but [CLS] and [SEP]: a half is never longer than the piece."""
        return length - 2

    def rows(self, piece: Piece, special: Special) -> Sequence[Row]:
        """Two rows of segment 0, or none of a piece too short to be halved."""
        if len(piece.ids) < 8:
            return []
        generator = piece.generator()
        ends = _ends(piece.ids, special)
        inner = ends[(ends >= 4) & (ends <= len(piece.ids) - 4)]
        cut = int(generator.choice(inner)) if len(inner) else len(piece.ids) // 2
        before = ends[(ends < cut) & (ends >= cut - self.longest)]                                 # a whole sentence where one fits
        halves = piece.ids[int(before[0]) if len(before) else max(0, cut - self.longest) : cut], piece.ids[cut : cut + self.longest]
        if generator.random() < self.same:
            one = halves[int(generator.integers(2))]
            halves = one, one
        return [Row(ids, numpy.zeros_like(ids), view=True) for ids in (_framed(half, special) for half in halves)]


NAMES: dict[str, type[Objective]] = {
    "mlm": Masked, "nsp": NextSentence, "gpt": NextToken, "unilm": UniLM, "spans": SpanCorruption, "tta": Autoencoding,
    "contrastive": Contrastive,
}  # fmt: skip
"""What objectives are called on the command line."""


def parse(written: Sequence[str], *, words: bool = False) -> dict[Objective, float]:
    """["mlm=0.5", "unilm=0.5"] -> objectives and their shares; a name alone has 1. words: Masked and NextSentence hide whole words.
    ConfigError for an unknown name, one given twice, a share that is none."""
    found: dict[Objective, float] = {}
    for one in written:
        name, equals, share = (part.strip() for part in one.partition("="))
        if name not in NAMES:
            raise ConfigError(f"The objective {name!r} is unknown.", fix=nearest(name, list(NAMES)))
        kind = NAMES[name]
        if any(type(other) is kind for other in found):
            raise ConfigError(f"The objective {name!r} is given twice.", fix="Keep one, with its share.")
        try:
            value = float(share) if equals else 1.0
        except ValueError:
            raise ConfigError(f"The share of {name} is {share!r}.", fix=f"Give a number: {name}=0.5.") from None
        checks.number(f"The share of {name}", value)
        found[kind(words=True) if words and kind in (Masked, NextSentence) else kind()] = value
    return found


def _check_rate(rate: float) -> None:
    checks.number("The rate of masked tokens", rate, below=1)


def _ends(ids: Ids, special: Special) -> Ids:
    """Where sentences end."""
    ends: Ids = numpy.flatnonzero(numpy.isin(ids, list(special.stops))) + 1
    return ends


def _words(piece: Piece, asked: bool) -> NDArray[numpy.bool_] | None:
    if asked and piece.words is None:
        raise ConfigError(f"{piece.source.shards.folder} knows no words.", fix="Write it with words, or mask single tokens.")
    return piece.words if asked else None


def _hidden(
    ids: Ids, words: NDArray[numpy.bool_] | None, generator: numpy.random.Generator, rate: float, special: Special
) -> tuple[Ids, Ids]:
    assert special.mask is not None
    return mask_tokens(
        ids, generator, mask_id=special.mask, vocab_size=special.vocab_size, ordinary=special.ordinary, rate=rate, words=words
    )


def _framed(ids: Ids, special: Special) -> Ids:
    framed: Ids = numpy.concatenate([_NONE if special.cls is None else [special.cls], ids, [special.sep]])
    return framed


def _joined(parts: Sequence[ArrayLike]) -> Ids:
    return numpy.concatenate([numpy.asarray(part, dtype=numpy.int64) for part in parts])


def _written(source: Ids, target: Ids, special: Special) -> Row:
    """Read `source`, then write `target`: the one behind the other, or each in its own stack."""
    read = _framed(source, special)
    if special.start is not None:
        ids = numpy.concatenate([[special.start], target[:-1]])
        return Row(ids, numpy.zeros_like(ids), numpy.arange(len(ids)), target, source=read)
    ids = numpy.concatenate([read, target])
    at = numpy.arange(len(read) - 1, len(ids) - 1)
    return Row(ids, (numpy.arange(len(ids)) >= len(read)).astype(numpy.int64), at, ids[at + 1])
