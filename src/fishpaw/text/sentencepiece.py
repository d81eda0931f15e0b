"""SentencePiece models (spiece.model) with the conventions of T5, ALBERT, XLM-R and Llama, and offsets into the original text.

Kudo and Richardson 2018, arXiv:1808.06226. The package `sentencepiece` does the work (extra `spm`); it is imported when a model is opened.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.text.encoding import Encoding, Pieces, Side, assemble, check_pairs
from fishpaw.text.normalize import mend
from fishpaw.text.roles import Roles

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

__all__ = ["LAYOUTS", "Layout", "SentencePiece", "find_pieces", "open_model"]


@dataclass(frozen=True)
class Layout:
    """Where a family puts its special tokens: start text end, or start text end middle pair end. segments: whether a pair's second text
    is segment 1, else all are 0. fairseq: ids are the file's and one, after <s> <pad> </s> <unk>. roles: which token is what."""

    start: str | None = None
    end: str | None = None
    middle: str | None = None
    segments: bool = False
    fairseq: bool = False
    roles: tuple[tuple[str, str], ...] = ()


LAYOUTS = {
    "t5": Layout(end="</s>", roles=(("pad", "<pad>"), ("eos", "</s>"), ("unk", "<unk>"))),
    "albert": Layout(start="[CLS]", end="[SEP]", segments=True, roles=(
        ("pad", "<pad>"), ("unk", "<unk>"), ("bos", "[CLS]"), ("eos", "[SEP]"), ("cls", "[CLS]"), ("sep", "[SEP]"), ("mask", "[MASK]"))),
    "xlm-roberta": Layout(start="<s>", end="</s>", middle="</s>", fairseq=True, roles=(
        ("pad", "<pad>"), ("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>"), ("cls", "<s>"), ("sep", "</s>"), ("mask", "<mask>"))),
    "llama": Layout(start="<s>", roles=(("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))),
}
_BLANK = "\u2581"
_QUOTES = re.compile("``|''")


class SentencePiece(Roles):
    """Encode and decode with a SentencePiece model.

    model: the bytes of its file. layout: a name of LAYOUTS. extra: tokens after the pieces (T5's <extra_id_99> … <extra_id_0>). lower,
    accents: ALBERT's do_lower_case and keep_accents. files: what `save` writes beside, name -> bytes; `name`: the model's own. Special and
    extra tokens are found in raw text as they stand. Raises ConfigError without the package, CheckpointError for a damaged file or one that
    lacks the layout's tokens.
    """

    def __init__(self, model: bytes, layout: str, *, extra: Sequence[str] = (), lower: bool = False, accents: bool = True,
                 name: str = "spiece.model", files: Mapping[str, bytes] | None = None) -> None:
        if layout not in LAYOUTS:
            raise ConfigError(f"layout={layout!r} is unknown.", fix=f"Use one of {', '.join(LAYOUTS)}.")
        self.model, self.layout, self.extra, self.lower, self.accents = model, layout, tuple(extra), lower, accents
        self.name, self.files = name, dict(files or {})
        self._rules = LAYOUTS[layout]
        self._spm = open_model(model)
        pieces = self._spm.id_to_piece(list(range(len(self._spm))))
        if self._rules.fairseq:                                 # <unk> <s> </s> first … become <s> <pad> </s> <unk> first …
            self._ours = [3, 0, 2, *range(4, len(pieces) + 1)]
            pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], "<mask>"]
        else:
            self._ours = list(range(len(pieces)))
        self._theirs = {ours: theirs for theirs, ours in enumerate(self._ours)}
        index = {token: id for id, token in reversed(list(enumerate([*pieces, *self.extra])))}
        required = [token for token in (self._rules.start, self._rules.end, self._rules.middle) if token is not None]
        missing = [token for token in required if token not in index]
        if missing:
            raise CheckpointError(f"the SentencePiece model has no {', '.join(missing)}, which {layout} needs.",
                                  fix="Is it of another kind of model? Name that one in tokenizer_config.json (tokenizer_class).")
        named = {role: index[token] for role, token in self._rules.roles if token in index}
        super().__init__([*pieces, *self.extra], named, {**self.files, name: model})
        self._whole = {token: index[token] for token in (*(token for _, token in self._rules.roles if token in index), *self.extra)}
        self.special_ids = frozenset(self._whole.values())
        longest = sorted(self._whole, key=len, reverse=True)
        self._split_at = re.compile("(" + "|".join(map(re.escape, longest)) + ")")
        self._ends = tuple((index[token], token) if token is not None else None
                           for token in (self._rules.start, self._rules.end, self._rules.middle))

    def encode(self, text: str, pair: str | None = None, *, max_length: int | None = None, truncate: Side = "right",
               special: bool = True) -> Encoding:
        """The ids of a text or a pair, with the layout's special tokens unless `special` is False. At most `max_length` tokens: the longer
        text is cut first, on the side that `truncate` names. Offsets leave out the blank before a word; a character that becomes several
        tokens is in the offsets of each."""
        return self.encode_batch([text], None if pair is None else [pair], max_length=max_length, truncate=truncate, special=special)[0]

    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None,
                     truncate: Side = "right", special: bool = True) -> list[Encoding]:
        """As `encode`, for many texts."""
        check_pairs(texts, pairs)
        start, end, middle = self._ends if special else (None, None, None)
        out = []
        for number, text in enumerate(texts):
            second = None if pairs is None else self._pieces(pairs[number])
            found = assemble(self._pieces(text), second, max_length=max_length, truncate=truncate, start=start, end=end, middle=middle)
            out.append(found if self._rules.segments else Encoding(found.ids, [0] * len(found), found.tokens, found.offsets))
        return out

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Readable text. Raises DataError for an id outside the vocabulary."""
        runs: list[str | list[int]] = [[]]
        for id in self._within(ids):
            if id in self.special_ids or id not in self._theirs:
                runs += [] if skip_special else [self.tokens[id], []]
            elif isinstance(last := runs[-1], list):
                last.append(self._theirs[id])
        text = ""
        for run in runs:
            if isinstance(run, list) and run and text and self._spm.id_to_piece(run[0]).startswith(_BLANK):
                text += " "
            text += run if isinstance(run, str) else str(self._spm.decode(run)) if run else ""
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.model, self.layout, self.extra, self.lower, self.accents, self.name, self.files)

    def _pieces(self, text: str) -> Pieces:
        """Raw text at special tokens, the parts through the model."""
        out, base = Pieces([], [], []), 0
        for number, part in enumerate(self._split_at.split(mend(text))):
            if number % 2:
                found = Pieces([self._whole[part]], [part], [(0, len(part))])
            elif self.layout == "albert":
                found = self._albert(part)
            else:
                found = find_pieces(self._spm, part)
                found = Pieces([self._ours[id] for id in found.ids], found.tokens, found.offsets)
            out.ids.extend(found.ids)
            out.tokens.extend(found.tokens)
            out.offsets.extend((base + start, base + end) for start, end in found.offsets)
            base += len(part)
        return out

    def _albert(self, text: str) -> Pieces:
        """Google's rules around the model: https://github.com/google-research/albert/blob/master/tokenization.py"""
        normal, source = self._fold(text)
        out = Pieces([], [], [])
        for id, token, (start, end) in zip(*find_pieces(self._spm, normal), strict=True):
            if len(token) > 1 and token[-1] == "," and token[-2].isdigit():         # a comma after a number stands alone
                for one in self._number(token):
                    out.ids.append(self._spm.piece_to_id(one))
                    out.tokens.append(one)
                    width = len(one.lstrip(_BLANK))
                    out.offsets.append((start, min(start + width, end)))
                    start = min(start + width, end)
            else:
                out.ids.append(id)
                out.tokens.append(token)
                out.offsets.append((start, end))
        spans = [(source[start][0], source[end - 1][1] if end > start else source[start][0]) for start, end in out.offsets]
        return Pieces(out.ids, out.tokens, spans)

    def _number(self, token: str) -> list[str]:
        parts = list(self._spm.encode(token[:-1].replace(_BLANK, ""), out_type=str))
        if token[0] != _BLANK and parts[0][0] == _BLANK:
            parts = parts[1:] if len(parts[0]) == 1 else [parts[0][1:], *parts[1:]]
        return [*parts, token[-1]]

    def _fold(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """Quotes of TeX as ", accents off, lower case; and where each character comes from, with one place more for the end."""
        chars: list[str] = []
        source: list[tuple[int, int]] = []
        place = 0
        while place < len(text):
            length = 2 if _QUOTES.match(text, place) else 1
            folded = '"' if length == 2 else text[place]
            if not self.accents:
                folded = "".join(char for char in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(char))
            folded = folded.lower() if self.lower else folded
            chars.append(folded)
            source += [(place, place + length)] * len(folded)
            place += length
        return "".join(chars), [*source, (place, place)]


def open_model(model: bytes) -> SentencePieceProcessor:
    """A SentencePiece model from the bytes of its file. Raises ConfigError without the package, CheckpointError for a damaged file."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ConfigError("this tokenizer needs the package sentencepiece.", fix='Run: pip install "fishpaw[spm]"') from error
    fix = "Fetch the file again; a tokenizer.model of tiktoken is none."
    if not model:
        raise CheckpointError("a SentencePiece model of 0 bytes.", fix=fix)
    try:
        found = SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError("the file is no SentencePiece model, or damaged.", fix=fix) from error
    if not len(found):
        raise CheckpointError("the SentencePiece model has no pieces.", fix=fix)
    return found


def find_pieces(model: SentencePieceProcessor, text: str) -> Pieces:
    """The pieces of a text with the file's own ids. Offsets leave out blanks before a word; a character that becomes several pieces is in
    the offsets of each (SentencePiece gives it to the last alone); a blank that is a token of its own has the blank's, if there is one."""
    found = model.encode(text, out_type="offset_mapping")
    ids, tokens, offsets = list(found["ids"]), list(found["pieces"]), []
    for token, (start, end) in zip(tokens, found["offsets"], strict=True):
        if token != _BLANK:
            start += len(text[start:end]) - len(text[start:end].lstrip())
            end = max(end, min(start + 1, len(text)))
        offsets.append((start, end))
    return Pieces(ids, tokens, offsets)


def _rebuild(model: bytes, layout: str, extra: Sequence[str], lower: bool, accents: bool, name: str,
             files: Mapping[str, bytes]) -> SentencePiece:
    return SentencePiece(model, layout, extra=extra, lower=lower, accents=accents, name=name, files=files)
