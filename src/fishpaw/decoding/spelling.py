"""What each token adds to the text that a tokenizer's `decode` gives, as bytes: asked of the tokenizer itself, and checked on samples.

Where that depends on what went before (a blank between English words, none at the beginning) there are several contexts: a token has a
spelling, and a context that follows it, in each. A tokenizer whose `decode` isn't of this kind is refused, by an example.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from fishpaw.decoding.constraints import Trie
from fishpaw.errors import ConfigError, FishpawError
from fishpaw.text.encoding import Tokenizer
from fishpaw.text.normalize import is_cjk
from fishpaw.text.spacing import join
from fishpaw.text.wordpiece import WordPiece

__all__ = ["Context", "Spelling", "spell"]

SAMPLES = ("鱼与熊掌,兼得。", "It costs $3.50, or 20% less (maybe).", '{"name": ["a-b", 12]}', '今天BERT和GPT-2见面:"你好"!',
           "émigré 한국어 😀𝄞 ß", "a\nb  c")
RANDOM_SAMPLES = 300


@dataclass(frozen=True)
class Context:
    """The tokens that may come next: tokens [k], sorted; leaves [k]: the node of the trie where what a token adds here ends; after [k]:
    number of the context that follows it."""

    tokens: NDArray[np.int64]
    leaves: NDArray[np.int64]
    after: NDArray[np.int64]


@dataclass(frozen=True)
class Spelling:
    """trie: over bytes, of all that a token may add in any context. contexts: the first is that of an empty text."""

    trie: Trie
    contexts: tuple[Context, ...]


@lru_cache(maxsize=4)
def spell(tokenizer: Tokenizer) -> Spelling:
    """The spelling of a tokenizer's tokens; special tokens, and those that add nothing, have none. Kept for the last four tokenizers.

    WordPiece: by the rules of `fishpaw.text.spacing`, without the token ' (whether it is an apostrophe, the word after it decides) and
    without a ## piece behind a straight quote or at the beginning. Others: a token by itself, and a token behind another one; pieces of
    characters (byte-level tokens, <0xE4>) by their bytes. Raises ConfigError for a tokenizer that joins its tokens in yet another way.
    """
    table = _wordpiece(tokenizer) if isinstance(tokenizer, WordPiece) else _plain(tokenizer)
    _check(tokenizer, table)
    return _assemble(table)


_Table = list[dict[int, tuple[bytes, int]]]
"""a context each: token -> (the bytes that it adds, number of the context that follows)"""


def _assemble(table: _Table) -> Spelling:
    texts = list(dict.fromkeys(text for moves in table for text, _ in moves.values() if text))
    trie = Trie(texts)
    leaves = {b"": 0} | dict(zip(texts, trie.leaves.tolist(), strict=True))
    contexts = []
    for moves in table:
        tokens = np.array(sorted(moves), np.int64)
        columns = [(leaves[moves[id][0]], moves[id][1]) for id in tokens.tolist()]
        contexts.append(Context(tokens, *np.array(columns, np.int64).T))
    return Spelling(trie, tuple(contexts))


def _plain(tokenizer: Tokenizer) -> _Table:
    """Three contexts: the beginning; behind another token; behind a blank that the beginning swallowed (SentencePiece's lone \u2581), where
    that is like the beginning: some files swallow them all."""
    ids = [id for id in range(tokenizer.size) if id not in tokenizer.special_ids and tokenizer.tokens[id]]
    anchor = next((id for id in ids if len(tokenizer.tokens[id]) == 1 and tokenizer.decode([id]) == tokenizer.tokens[id] != " "), None)
    if anchor is None:
        raise ConfigError("no token of the tokenizer spells a single character, so a pattern can't follow its texts.",
                          fix="Use Choices with the ids that the tokenizer gives.")
    before = tokenizer.decode([anchor])
    first: dict[int, tuple[bytes, int]] = {}
    later: dict[int, tuple[bytes, int]] = {}
    for id in ids:
        alone, behind = tokenizer.decode([id]), tokenizer.decode([anchor, id])
        if "\ufffd" in alone or "\ufffd" in behind:
            first[id] = later[id] = (_bytes_of(tokenizer.tokens[id]), 1)
        elif behind.startswith(before):
            first[id], later[id] = (alone.encode(), 1), (behind[len(before):].encode(), 1)
    swallowed = [id for id, (text, _) in first.items() if not text and later[id][0]]
    first, later = ({id: move for id, move in moves.items() if move[0]} for moves in (first, later))
    telling = next((id for id in first if id in later and first[id] != later[id]), None)
    again = bool(swallowed) and telling is not None and tokenizer.decode([swallowed[0], telling]).encode() == first[telling][0]
    return [first | {id: (b"", 2 if again else 1) for id in swallowed}, later, *([first] if again else [])]


def _wordpiece(tokenizer: WordPiece) -> _Table:
    """A context: how the last word ends, whether a straight " is open, whether a ## piece may follow. Blanks are asked of `join`."""
    shapes: dict[tuple[bool, ...], str] = {}                     # how a word ends, as the blanks behind it show -> a word that ends so

    @cache
    def shape(word: str) -> str:
        return shapes.setdefault(tuple(" " in join([word, probe]) for probe in ("a", "1")), word)

    @cache
    def blank(word: str, quoted: bool, token: str) -> bool:
        said = ['"', word] if quoted else [word]
        return join([*said, token]) != join(said) + token

    opened, closed = shape("中"), shape("a")                     # behind a " as behind these; and they come first, to stand for their kind
    words = []                                                   # id, whether a piece, what it adds, its first letter, its end's shape
    for id, token in enumerate(tokenizer.tokens):
        if token and id not in tokenizer.special_ids and token != "'":
            piece = token.startswith("##") and len(token) > 2
            text = token[2:] if piece else token
            last = _typical(text[-1])                            # a word's last letter decides, and whether it has another
            words.append((id, piece, text, _typical(text[0]), shape(f"a{last}" if piece or len(text) > 1 else last)))
    start = ("", False, False)                                   # a word that ends as the last one; quoted; whether a ## piece may follow
    index = {start: 0}
    queue, table = [start], []
    for word, quoted, joinable in queue:
        moves: dict[int, tuple[bytes, int]] = {}
        for id, piece, text, letter, end in words:
            if text == '"' and not piece:
                after, apart = (closed if quoted else opened, not quoted, False), bool(word) and blank(word, quoted, text)
            else:
                after, apart = (end, quoted, True), bool(word) and not piece and blank(word, False, letter)
            if joinable or not piece:
                moves[id] = (f" {text}".encode() if apart else text.encode(), index.setdefault(after, len(index)))
                if len(queue) < len(index):
                    queue.append(after)
        table.append(moves)
    return table


def _typical(char: str) -> str:
    return "中" if is_cjk(char) else char


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _bytes_of(token: str) -> bytes:
    """A token that is a part of a character: one byte by its number, or bytes as GPT-2 spells them; b"" for neither."""
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return bytes(_letters()[char] for char in token) if all(char in _letters() for char in token) else b""


@lru_cache(maxsize=1)
def _letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for 256 and on, in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + place): byte for place, byte in enumerate(others)}}


def _check(tokenizer: Tokenizer, contexts: _Table) -> None:
    """Compare with `decode` on encoded samples and on random tokens."""
    dice = random.Random(1)
    sequences: list[Sequence[int]] = []
    for sample in SAMPLES:
        try:
            sequences.append(tokenizer.encode(sample, special=False).ids)
        except FishpawError:                                     # a tokenizer that has no unknown token may refuse a text
            continue
    known = [list(moves) for moves in contexts]
    for length in range(2, 2 + RANDOM_SAMPLES):
        walk, context = [], 0
        for _ in range(2 + length % 7):
            id = dice.choice(known[context])
            context = contexts[context][id][1]
            walk.append(id)
        sequences.append(walk)
    for sequence in sequences:
        text, context = b"", 0
        for id in sequence:
            if id not in contexts[context]:                      # a token that patterns do without
                break
            added, context = contexts[context][id]
            text += added
        else:
            whole = text.decode("utf-8", "ignore").encode() == text          # random bytes may be no UTF-8
            if whole and text.decode() != tokenizer.decode(sequence):
                shown = [tokenizer.tokens[id] for id in sequence]
                raise ConfigError(f"a pattern can't follow this tokenizer: the tokens {shown} give {tokenizer.decode(sequence)!r}, where "
                                  f"one by one they give {text.decode()!r}.", fix="Use Choices with the ids that the tokenizer gives.")
