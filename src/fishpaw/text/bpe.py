"""Byte-level byte-pair encoding, GPT-2's: no text is unknown, because every byte is a token. On the Rust `tokenizers` package.

Language models are unsupervised multitask learners (Radford et al., 2019): https://github.com/openai/gpt-2/blob/master/src/encoder.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from fishpaw.errors import DataError
from fishpaw.text.encoding import Encoding, Pieces, Side, assemble, check_pairs
from fishpaw.text.normalize import mend

__all__ = ["ByteLevel"]


class ByteLevel:
    """Encode and decode with GPT-2's vocabulary (token -> id, bytes spelt as printable characters) and merges, best first.

    eos: the token that ends a text; it is found in raw text as it stands, as are the `added` tokens. prefix_space: put a blank before
    each text. Raises DataError for ids that are not 0 … n-1, a missing byte, or a merge whose parts or result are not in the vocabulary.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, eos: str = "<|endoftext|>",
                 prefix_space: bool = False, added: Sequence[str] = ()) -> None:
        self.tokens = _by_id(vocab)
        missing = [char for char in pre_tokenizers.ByteLevel.alphabet() if char not in vocab]
        if missing:
            raise DataError(f"the vocabulary lacks {len(missing)} of the 256 bytes, {min(missing)!r} among them.",
                            fix="Give the vocabulary of a byte-level tokenizer.")
        for number, (left, right) in enumerate(merges):
            if left not in vocab or right not in vocab or left + right not in vocab:
                raise DataError(f"merge {number} ({left!r}, {right!r}) needs a token that is not in the vocabulary.",
                                fix="Give the merges that were learned with this vocabulary.")
        absent = [token for token in (eos, *added) if token not in vocab]
        if absent:
            raise DataError(f"the vocabulary of {len(self.tokens)} tokens has no {', '.join(map(repr, absent))}.",
                            fix="Name a token that it has.")
        self.index, self.merges, self.eos = dict(vocab), tuple(merges), eos
        self.prefix_space, self.added = prefix_space, tuple(dict.fromkeys(token for token in added if token != eos))
        self.special_ids = frozenset(self.index[token] for token in (eos, *self.added))
        self._rust = RustTokenizer(models.BPE(self.index, list(self.merges), continuing_subword_prefix="", end_of_word_suffix=""))
        self._rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        self._rust.decoder = decoders.ByteLevel()
        self._rust.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (eos, *self.added)])

    def encode(self, text: str, pair: str | None = None, *, max_length: int | None = None, truncate: Side = "right",
               special: bool = True) -> Encoding:
        """The ids of a text, or of two, one after the other. `special` adds nothing: GPT-2 has no such tokens. A character of several
        bytes may be several tokens; each has the offsets of the whole character."""
        return self.encode_batch([text], None if pair is None else [pair], max_length=max_length, truncate=truncate, special=special)[0]

    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None,
                     truncate: Side = "right", special: bool = True) -> list[Encoding]:
        """As `encode`, for many texts: one call into Rust, on all cores."""
        check_pairs(texts, pairs)
        firsts = self._split(texts)
        seconds = [None] * len(firsts) if pairs is None else self._split(pairs)
        return [assemble(first, second, max_length=max_length, truncate=truncate) for first, second in zip(firsts, seconds, strict=True)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text, exactly; bytes that are no UTF-8 become U+FFFD. Raises DataError for an id outside the vocabulary."""
        ids = [int(id) for id in ids]
        for id in ids:
            if not 0 <= id < self.size:
                raise DataError(f"id {id} is outside the vocabulary of {self.size} tokens.", fix="Decode ids of this tokenizer's model.")
        return str(self._rust.decode(ids, skip_special_tokens=skip_special))

    def save(self, folder: Path) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, which transformers' AutoTokenizer opens with the same ids."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": self.prefix_space,
            "bos_token": self.eos, "eos_token": self.eos, "unk_token": self.eos,
            "added_tokens_decoder": {
                str(self.index[token]): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                                         "special": True} for token in (self.eos, *self.added)},
        }
        merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in self.merges)
        (folder / "vocab.json").write_bytes(json.dumps(self.index, ensure_ascii=False).encode("utf-8"))
        (folder / "merges.txt").write_bytes(merges.encode("utf-8"))
        (folder / "tokenizer_config.json").write_bytes((json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode("utf-8"))

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @property
    def eos_id(self) -> int:
        return self.index[self.eos]

    @property
    def pad_id(self) -> int:
        """GPT-2 has no padding token: the end token fills up, and is never attended to."""
        return self.eos_id

    @property
    def mask_id(self) -> int:
        """Raises DataError: GPT-2 has no mask."""
        raise DataError("A byte-level tokenizer has no [MASK].", fix="Use a BERT or RoFormer.")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.index, self.merges, self.eos, self.prefix_space, self.added)

    def _split(self, texts: Sequence[str]) -> list[Pieces]:
        found = self._rust.encode_batch([mend(text) for text in texts], add_special_tokens=False)
        return [Pieces(one.ids, one.tokens, one.offsets) for one in found]


def _by_id(vocab: Mapping[str, int]) -> tuple[str, ...]:
    tokens = sorted(vocab, key=lambda token: vocab[token])
    for expected, token in enumerate(tokens):
        if vocab[token] != expected:
            raise DataError(f"token {token!r} has id {vocab[token]} where {expected} was due.", fix="Ids must be 0 … n-1, each once.")
    return tuple(tokens)


def _rebuild(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], eos: str, prefix_space: bool, added: Sequence[str]) -> ByteLevel:
    return ByteLevel(vocab, merges, eos=eos, prefix_space=prefix_space, added=added)
