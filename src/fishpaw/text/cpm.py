"""CPM-LM's tokenizer: jieba's words, blanks and line ends as the visible ▂ and ▃, then SentencePiece over the words set apart.

Zhang et al. 2020, arXiv:2012.00413; the recipe: https://github.com/TsinghuaAI/CPM-1-Generate/blob/main/data_util/tokenization_gpt2.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fishpaw.errors import CheckpointError
from fishpaw.text.encoding import Encoding, Pieces, Side, assemble, check_pairs
from fishpaw.text.normalize import mend
from fishpaw.text.roles import Roles
from fishpaw.text.sentencepiece import find_pieces, open_model
from fishpaw.text.words import WordCutter, jieba_cutter

__all__ = ["Cpm"]

_BLANK, _LINE = "\u2582", "\u2583"
_VISIBLE = str.maketrans(" \n", _BLANK + _LINE)


class Cpm(Roles):
    """Encode and decode with CPM's SentencePiece model (chinese_vocab.model), given as the bytes of its file.

    A line end is one token, `line_id` = 3; like every word it may have the blank piece before it. files: what `save` writes beside, name ->
    bytes; `name`: the model's own. Needs the packages sentencepiece and jieba: ConfigError without them. CheckpointError for a damaged file
    or one without a token for line ends.
    """

    def __init__(self, model: bytes, *, name: str = "spiece.model", files: Mapping[str, bytes] | None = None) -> None:
        self.model, self.name = model, name
        self.files = dict(files or {"tokenizer_config.json": b'{"tokenizer_class": "CpmTokenizer"}\n'})
        self._spm = open_model(model)
        tokens = self._spm.id_to_piece(list(range(len(self._spm))))
        unknown = self._spm.unk_id()
        named = {"eos": self._spm.piece_to_id("<eod>"), "pad": self._spm.piece_to_id("<pad>"), "unk": unknown}      # no mask: never trained
        super().__init__(tokens, named, {**self.files, name: model})
        line = next((token for token in (_LINE, "<cls>") if token in self.tokens), None)   # older files of the same model call it <cls>
        if line is None:
            raise CheckpointError("the SentencePiece model has neither ▃ nor <cls> for line ends.", fix="Use CPM's chinese_vocab.model.")
        self.line_id = self.tokens.index(line)
        self.special_ids = frozenset(id for id, token in enumerate(self.tokens) if id != self.line_id
                                     and (id == unknown or self._spm.is_control(id) or token in ("<eod>", "<eop>")))
        self._cut: WordCutter = jieba_cutter(hidden=True)

    def encode(self, text: str, pair: str | None = None, *, max_length: int | None = None, truncate: Side = "right",
               special: bool = True) -> Encoding:
        """The ids of a text, or of two, one after the other; `special` adds nothing. At most `max_length` tokens: the longer text is cut
        first, on the side that `truncate` names. NFKC as the model has it, so a full-width letter comes back as ASCII."""
        return self.encode_batch([text], None if pair is None else [pair], max_length=max_length, truncate=truncate, special=special)[0]

    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None,
                     truncate: Side = "right", special: bool = True) -> list[Encoding]:
        """As `encode`, for many texts."""
        check_pairs(texts, pairs)
        seconds = [None] * len(texts) if pairs is None else [self._pieces(pair) for pair in pairs]
        return [assemble(self._pieces(text), second, max_length=max_length, truncate=truncate)
                for text, second in zip(texts, seconds, strict=True)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text: pieces joined, SentencePiece's blanks gone, the visible ones blanks and line ends again. Raises DataError for an id
        outside the vocabulary."""
        kept: list[str] = []
        run: list[int] = []
        for id in self._within(ids):
            if id == self.line_id or id in self.special_ids:
                kept += [self._text(run), _LINE if id == self.line_id else "" if skip_special else self.tokens[id]]
                run = []
            else:
                run.append(id)
        return "".join([*kept, self._text(run)]).replace(_BLANK, " ").replace(_LINE, "\n")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.model, self.name, self.files)

    def _text(self, run: list[int]) -> str:
        return str(self._spm.decode(run)).replace(" ", "") if run else ""

    def _pieces(self, text: str) -> Pieces:
        text = mend(text)
        words: list[str] = []
        spans: list[tuple[int, int]] = []                       # where each character of the joined words comes from
        place = 0
        for word in self._cut(text):
            spans += [(place, place)] if words else []          # the blank between two words, which the text doesn't have
            spans += [(place + index, place + index + 1) for index in range(len(word))]
            words.append(word.translate(_VISIBLE))
            place += len(word)
        spans.append((place, place))
        found = find_pieces(self._spm, " ".join(words))
        out = Pieces([], [], [])
        for id, token, (start, end) in zip(*found, strict=True):
            out.ids.append(self.line_id if token == _LINE else id)
            out.tokens.append(token)
            out.offsets.append((spans[start][0], spans[end - 1][1] if end > start else spans[start][0]))
        return out


def _rebuild(model: bytes, name: str, files: Mapping[str, bytes]) -> Cpm:
    return Cpm(model, name=name, files=files)
