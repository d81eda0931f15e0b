"""A vocabulary: tokens in the order of their ids, read from vocab.txt; pruned, extended, and compounded from old tokens.

The three operations return, beside the new vocabulary, the old ids that the rows of an embedding are taken from, as bert4keras'
keep_tokens and compound_tokens do (https://github.com/bojone/bert4keras). A line's number, from 0, is its id, as in transformers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fishpaw.errors import DataError
from fishpaw.text.normalize import is_cjk

__all__ = ["SPECIAL", "Vocab", "compound", "extend", "keep", "simplify"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Vocab:
    """Tokens by id, and `index`, ids by token. A token that stands twice has the later id, as in transformers; a blank line
    keeps its id but is never found."""

    tokens: tuple[str, ...]
    index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "index", {token: number for number, token in enumerate(self.tokens) if token.strip()})
        if not self.index:
            raise DataError("the vocabulary has no token.", fix="Give a vocab.txt with one token a line.")

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self.index

    def id(self, token: str) -> int:
        """The id of a token; raises DataError when the vocabulary lacks it."""
        if token not in self.index:
            raise DataError(f"token {token!r} is not among the {len(self)} tokens of the vocabulary.",
                            fix="Check its spelling and case, or add it with fishpaw.text.vocab.extend.")
        return self.index[token]

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Read vocab.txt: UTF-8, one token a line; CRLF, a byte order mark and blank lines at the end are accepted.
        Raises DataError, with the line, for another encoding."""
        path = Path(path)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror or error}.", fix="Give the path of a vocab.txt.") from error
        return cls.parse(raw, name=str(path))

    @classmethod
    def parse(cls, raw: bytes, *, name: str = "vocab.txt") -> Vocab:
        """As `load`, from bytes; `name` is what errors call the file."""
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{name}, line 1: the file is UTF-16, not UTF-8.", fix="Convert it: iconv -f UTF-16 -t UTF-8.")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise DataError(f"{name}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8.",
                            fix="If the file is GBK, convert it: iconv -f GB18030 -t UTF-8.") from error
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise DataError(f"{name}, line {line}: a NUL byte; this is no text file.", fix="Give a vocab.txt with one token a line.")
        # Split at \n only: U+2028 is a token of Google's Chinese vocabulary, and str.splitlines would shift every id after it.
        tokens = [line.rstrip(" \t\r") for line in text.split("\n")]
        while tokens and not tokens[-1]:
            tokens.pop()
        if not tokens:
            raise DataError(f"{name}, line 1: the file holds no token.", fix="Give a vocab.txt with one token a line.")
        return cls(tuple(tokens))

    def save(self, path: str | Path) -> None:
        """Write vocab.txt: UTF-8, one token a line, LF on every system. Raises DataError for a token that would not come back."""
        for number, token in enumerate(self.tokens):
            if "\n" in token or token != token.rstrip(" \t\r"):
                raise DataError(f"token {number} ({token!r}) holds a line break or ends in white space: it can't be a line of vocab.txt.",
                                fix="Rename or drop it.")
        Path(path).write_bytes("".join(f"{token}\n" for token in self.tokens).encode("utf-8"))


def keep(vocab: Vocab, tokens: Iterable[str | int]) -> tuple[Vocab, list[int]]:
    """The vocabulary with only these tokens (or ids) and the special ones, in their old order, and the old ids kept.

    Row i of the pruned embedding is row `kept[i]` of the old one. Raises DataError for a token or id that is not there.
    """
    wanted = {vocab.index[token] for token in SPECIAL if token in vocab}
    for token in tokens:
        if isinstance(token, int) and not 0 <= token < len(vocab):
            raise DataError(f"id {token} is outside the vocabulary of {len(vocab)} tokens.", fix=f"Keep ids from 0 to {len(vocab) - 1}.")
        wanted.add(token if isinstance(token, int) else vocab.id(token))
    kept = sorted(wanted)
    return Vocab(tuple(vocab.tokens[number] for number in kept)), kept


def simplify(vocab: Vocab) -> tuple[Vocab, list[int]]:
    """Drop what Chinese WordPiece can never produce: pieces of several characters (## included) with an ideograph or punctuation
    among them. Google's 21,128 tokens become 13,584; [unused…] go, too. Returns as `keep` does."""
    return keep(vocab, [number for number, token in enumerate(vocab.tokens) if vocab.index.get(token) == number and _reachable(token)])


def extend(vocab: Vocab, tokens: Iterable[str]) -> Vocab:
    """The vocabulary with these tokens after the old ones, in the order given; what it already has is not added twice."""
    new = dict.fromkeys(token for token in tokens if token not in vocab)
    if any(not token.strip() for token in new):
        raise DataError("a new token is empty or white space.", fix="Remove it from the list.")
    return Vocab(vocab.tokens + tuple(new))


def compound(vocab: Vocab, parts: Mapping[str, Sequence[str]]) -> tuple[Vocab, list[list[int]]]:
    """Add tokens whose rows are averages of old rows: {"new": ["old", "tokens"]}.

    Returns the longer vocabulary and, for each new token in order, the old ids to average. Raises DataError for a new token
    that exists, an unknown old one, or no old one.
    """
    for token, old in parts.items():
        if token in vocab:
            raise DataError(f"token {token!r} is in the vocabulary already.", fix="Leave it out.")
        if not old:
            raise DataError(f"token {token!r} is compounded of nothing.", fix="Name at least one token of the vocabulary.")
    return extend(vocab, parts), [[vocab.id(token) for token in old] for old in parts.values()]


def _reachable(token: str) -> bool:
    stem = token[2:] if token.startswith("##") else token
    return len(token) == 1 or not any(is_cjk(char) or _is_punctuation(char) for char in stem)


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] == "P" or (char.isascii() and char.isprintable() and not char.isalnum() and char != " ")
