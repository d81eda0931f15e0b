"""Words of Chinese texts from a masked language model alone: cut where neighbours change each other little (kexue.fm/archives/7476).

A text is read as units: characters, and runs of letters and digits, which stay whole. Long texts are read in windows that overlap by half.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fishpaw.decoding.limits import check_whole
from fishpaw.errors import ConfigError, DataError
from fishpaw.interpret.perturbed_masking import Metric, impacts, l2, refuse_unfit
from fishpaw.interpret.segmentation import below, correlations, spans, valleys
from fishpaw.model.transformer import Transformer
from fishpaw.text.encoding import Encoding, Tokenizer, affixes
from fishpaw.weights.load import load

__all__ = ["Layout", "Part", "Segment", "Segmented", "Unit", "parts", "units"]


class Unit(NamedTuple):
    """start, end: where it stands in the text, in characters; tokens: how many it is made of."""

    start: int
    end: int
    tokens: int


class Part(NamedTuple):
    """Units start … stop - 1 are read together; borders first … last - 1 (border t is between t and t + 1) are decided there."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Segmented:
    """A text, its words and its units; correlations: d of each border between two units, the article's; cuts: whether it was cut there."""

    text: str
    words: tuple[str, ...]
    units: tuple[str, ...]
    correlations: tuple[float, ...]
    cuts: tuple[bool, ...]

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"text": self.text, "words": [*self.words], "units": [*self.units], "correlations": [*self.correlations],
                "cuts": [*self.cuts]}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What a tokenizer puts before and behind a text; room: how many tokens of a text the model reads between them, None for any number."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    room: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, longest: int | None) -> Layout:
        """longest: tokens that are read together, those that the tokenizer adds included."""
        before, after = affixes(tokenizer)
        return cls(before, after, None if longest is None else longest - len(before) - len(after))

    def lay(self, ids: Sequence[int], lengths: Sequence[int]) -> tuple[torch.Tensor, list[range]]:
        """The tokens of a text, and how many each unit has -> ids [t] as the model reads them, and the places of each unit."""
        ends = [*accumulate(lengths, initial=len(self.before))]
        places = [range(start, end) for start, end in zip(ends, ends[1:], strict=False)]
        return torch.tensor([*self.before, *ids, *self.after]), places


class Segment:
    """A masked language model and its tokenizer, asked for words.

    >>> task = Segment.load("hfl/chinese-roberta-wwm-ext")
    >>> found, = task.segment(["大肠杆菌是人和许多动物肠道中最主要的一种细菌"])
    >>> found.words

    threshold: join where d is that or more; None: cut at the valleys of d, which need no threshold. layer and metric: which vectors are
    compared, and how: those of `perturbed_masking.impacts`. max_length: tokens read together, those that the tokenizer adds included;
    default what the model reads, and where that is any number, its config's max_positions. Errors: ConfigError for another model than a
    masked one and a threshold of NaN; DataError for a tokenizer without a mask.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, threshold: float | None = None, layer: int = -1, metric: Metric = l2,
                 max_length: int | None = None) -> None:
        refuse_unfit(model, layer=layer)
        below([], math.inf if threshold is None else threshold)
        if max_length is not None:
            check_whole("max_length", max_length, 1, None)
        self.model, self.tokenizer, self.mask_id = model, tokenizer, tokenizer.mask_id
        self.threshold, self.layer, self.metric = threshold, layer, metric
        length = model.reading(max_length)
        self.layout = Layout.of(tokenizer, longest=length)
        self.room = self.layout.room or 0
        if self.room < 2:
            raise ConfigError(f"max_length is {length}: no room for two tokens of the text beside those that the tokenizer adds.",
                              fix="Raise max_length.")

    @classmethod
    def load(cls, name: str | Path, *, changes: Mapping[str, Any] | None = None, threshold: float | None = None, layer: int = -1,
             metric: Metric = l2, max_length: int | None = None) -> Segment:
        """A model by its name for fp.load, with the changes of fp.load_model; the other arguments are those of the class."""
        return cls(*load(name, changes=changes), threshold=threshold, layer=layer, metric=metric, max_length=max_length)

    def segment(self, texts: Iterable[str], *, tokens: int = 4096) -> list[Segmented]:
        """Each text's words, in their order. tokens: a batch. DataError for one string where a list belongs, and a text without a token."""
        return [*self.stream(texts, tokens=tokens)]

    def stream(self, texts: Iterable[str], *, tokens: int = 4096) -> Iterator[Segmented]:
        """As `segment`, in constant memory."""
        if isinstance(texts, str):
            raise DataError("Where a list of texts belongs stands one string.", fix="Give a list of texts.")
        for text in texts:
            encoding = self.tokenizer.encode(text, special=False)
            if not encoding.ids:
                raise DataError("The text has no token to segment.", fix="Leave out what is blank, or only signs that nobody sees.")
            yield self._cut(text, encoding, units(text, encoding, most=self.room // 2), tokens)

    def _cut(self, text: str, encoding: Encoding, found: Sequence[Unit], tokens: int) -> Segmented:
        values = self._correlations(encoding.ids, [unit.tokens for unit in found], tokens)
        blank = [any(map(str.isspace, text[one.end : other.start])) for one, other in zip(found, found[1:], strict=False)]
        cuts = [cut or space for cut, space in zip(self.cuts(values), blank, strict=True)]
        starts = [0, *(unit.start for unit in found[1:]), len(text)]
        pieces = [text[starts[start] : starts[end]] for start, end in spans(cuts)]
        words = [word for piece in pieces for word in piece.split()]             # what the tokenizer passes over may have blanks around it
        named = [text[unit.start : unit.end] for unit in found]
        return Segmented(text, tuple(words), tuple(named), tuple(values), tuple(cuts))

    def cuts(self, values: Sequence[float]) -> list[bool]:
        """d of each border -> whether to cut there, white space apart, which always parts words."""
        return valleys(values) if self.threshold is None else below(values, self.threshold)

    def _correlations(self, ids: Sequence[int], lengths: Sequence[int], tokens: int) -> list[float]:
        ends = [*accumulate(lengths, initial=0)]
        values: list[float] = []
        for part in parts(lengths, self.room):
            laid, places = self.layout.lay(ids[ends[part.start] : ends[part.stop]], lengths[part.start : part.stop])
            pairs = [(at - part.start, at - part.start + 1) for at in range(part.first, part.last)]
            found = impacts(self.model, laid, places, pairs, mask_id=self.mask_id, layer=self.layer, metric=self.metric, tokens=tokens)
            values += correlations(found)
        return values


def units(text: str, encoding: Encoding, *, most: int) -> list[Unit]:
    """The tokens of a text (without added ones) as units: those of one character together, and runs of letters and digits, of `most` tokens
    at most; each other token alone."""
    found: list[Unit] = []
    for start, end in encoding.offsets:
        start += len(text[start:end]) - len(text[start:end].lstrip())          # some tokens take the blank before them along
        last = found[-1] if found else None
        runs = last is not None and 0 < start == last.end < end and _runs(text[start - 1]) and _runs(text[start])
        if last is not None and last.tokens < most and (start < last.end or runs):
            found[-1] = Unit(last.start, max(last.end, end), last.tokens + 1)
        else:
            found.append(Unit(max(start, last.end) if last else start, max(end, last.end) if last else end, 1))
    return found


def parts(lengths: Sequence[int], room: int) -> list[Part]:
    """Units of so many tokens, room // 2 each at most, in parts of at most `room` that overlap by half; each border is decided in the part
    where its nearer end is farthest."""
    count, start, stop = len(lengths), 0, 0
    ends = [*accumulate(lengths, initial=0)]
    read: list[tuple[int, int]] = []
    while stop < count:
        stop = next((at for at in range(stop, count) if ends[at + 1] - ends[start] > room), count)
        read.append((start, stop))
        half = next(at for at in range(start + 1, count + 1) if ends[at] - ends[start] >= room // 2 or at == count)
        start = min(half, stop - 1)
    middles = [_middle(ends, there[0], here[1]) for here, there in zip(read, read[1:], strict=False)]
    decided = zip([0, *middles], [*middles, count - 1], strict=True)
    return [Part(start, stop, first, last) for (start, stop), (first, last) in zip(read, decided, strict=True)]


def _middle(ends: Sequence[int], start: int, stop: int) -> int:
    """Of the borders that two parts share units at, start … stop - 1, the one in the middle: the first that the later part decides."""
    return min(range(start, stop), key=lambda at: abs(2 * ends[at + 1] - ends[start] - ends[stop]))


def _runs(letter: str) -> bool:
    """Letters and digits that aren't as wide as a Chinese character: of scripts that part words by blanks. Full-width ones, too."""
    return letter.isalnum() and unicodedata.east_asian_width(letter) != "W"
