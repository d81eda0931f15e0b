"""WordPiece: text to ids and back with BERT's rules, on the Rust `tokenizers` package, with offsets into the original text.

Ids and offsets are those of transformers' BertTokenizer (arXiv:1810.04805 for the rules); a word of more than 100 characters is one [UNK].
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from fishpaw.errors import ConfigError, DataError
from fishpaw.text.bulk import CHUNK, Bulk, Rows
from fishpaw.text.encoding import Encoding, Pieces, Side, assemble, check_pairs, room
from fishpaw.text.normalize import mend, normalize
from fishpaw.text.spacing import join
from fishpaw.text.vocab import SPECIAL, Vocab
from fishpaw.text.words import WordCutter, align, jieba_cutter

__all__ = ["WordPiece"]

LONGEST_WORD = 100                                              # characters; transformers' limit


class WordPiece:
    """Encode and decode with a vocabulary that has [PAD], [UNK], [CLS] and [SEP] (and [MASK], where masks are used).

    lower, strip_accents (None: as lower), cjk (ideographs apart): as in transformers. pre_tokenize: None, "jieba", or a function from
    the normalised text to its words; a word of the vocabulary is one token, the others go through WordPiece. added: tokens of the
    vocabulary that are found in the raw text as they stand, before any rule, as the five special tokens always are.
    Raises DataError for a vocabulary without the special tokens, ConfigError for jieba that is not installed.
    """

    def __init__(self, vocab: Vocab, *, lower: bool = True, cjk: bool = True, strip_accents: bool | None = None,
                 pre_tokenize: Callable[[str], list[str]] | Literal["jieba"] | None = None, added: Sequence[str] = ()) -> None:
        missing = [token for token in SPECIAL[:4] if token not in vocab]
        if missing:
            raise DataError(f"the vocabulary of {len(vocab)} tokens has no {', '.join(missing)}.", fix="Add a line for each to vocab.txt.")
        if isinstance(pre_tokenize, str) and pre_tokenize != "jieba":
            raise ConfigError(f"pre_tokenize={pre_tokenize!r} is unknown.", fix="Use 'jieba', a function, or None.")
        self.vocab = vocab
        self.lower, self.cjk, self.strip_accents, self.pre_tokenize = lower, cjk, strip_accents, pre_tokenize
        self.added = tuple(dict.fromkeys(token for token in added if token not in SPECIAL))
        self.special_ids = frozenset(vocab.id(token) for token in (*SPECIAL, *self.added) if token not in SPECIAL or token in vocab)
        model = models.WordPiece(dict(vocab.index), unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
        self._rust = RustTokenizer(model)
        self._rust.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=cjk, strip_accents=strip_accents, lowercase=lower)
        self._rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        whole = [token for token in (*SPECIAL, *self.added) if token in vocab]
        self._rust.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in whole])
        self._cut: WordCutter | None = jieba_cutter() if pre_tokenize == "jieba" else pre_tokenize
        self._tokens_in_text = tuple(whole)
        self._whole = re.compile("(" + "|".join(re.escape(token) for token in sorted(whole, key=len, reverse=True)) + ")")
        self._word = RustTokenizer(model)                       # for one word of normalised text: no special token can hide in it
        self._word.normalizer = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=cjk, strip_accents=False, lowercase=False)
        self._word.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._known: dict[str, Pieces] = {}
        self._bulk: Bulk | None = None                          # made when it is first asked for: 5 MB

    def encode(self, text: str, pair: str | None = None, *, max_length: int | None = None, truncate: Side = "right",
               special: bool = True) -> Encoding:
        """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP]; without `special`, nothing is added. At most `max_length` tokens: the longer
        text is cut first, on the side that `truncate` names. Any string encodes; what BERT's rules delete leaves no token."""
        return self.encode_batch([text], None if pair is None else [pair], max_length=max_length, truncate=truncate, special=special)[0]

    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None,
                     truncate: Side = "right", special: bool = True) -> list[Encoding]:
        """As `encode`, for many texts: one call into Rust, on all cores. Raises DataError when texts and pairs differ in number."""
        check_pairs(texts, pairs)
        firsts = self._split(texts)
        seconds = [None] * len(firsts) if pairs is None else self._split(pairs)
        start, end = ((self.cls_id, "[CLS]"), (self.sep_id, "[SEP]")) if special else (None, None)
        return [assemble(first, second, max_length=max_length, truncate=truncate, start=start, end=end)
                for first, second in zip(firsts, seconds, strict=True)]

    def encode_ids(self, texts: Iterable[str], *, special: bool = True, max_length: int | None = None, truncate: Side = "right") -> Rows:
        """The ids of `encode_batch` and nothing else: (ids int32 [n], lengths int64 [texts]), the texts one after another. Chinese goes
        by table, ten times as fast or more; Latin words, digits and kana go through WordPiece once and are remembered. With a pre_tokenize,
        as slow as `encode_batch`. np.split(ids, np.cumsum(lengths)[:-1]) gives an array a text."""
        found = list(self.encode_id_chunks(texts, special=special, max_length=max_length, truncate=truncate))
        if not found:
            return Rows(np.empty(0, np.int32), np.empty(0, np.int64))
        return Rows(np.concatenate([rows.ids for rows in found]), np.concatenate([rows.lengths for rows in found]))

    def encode_id_chunks(self, texts: Iterable[str], *, special: bool = True, max_length: int | None = None,
                         truncate: Side = "right") -> Iterator[Rows]:
        """As `encode_ids`, some texts at a time (about 65,000 characters, never a part of a text), in order: `texts` may be a generator
        over a corpus of any size, and memory does not grow with it."""
        if isinstance(texts, str):
            raise DataError("encode_ids was given one string.", fix="Pass a list of texts.")
        if self._cut is None and not any("\n" in token for token in self._tokens_in_text):
            return self._in_bulk().chunks(texts, special=special, max_length=max_length, truncate=truncate)
        room(max_length, 2 if special else 0, truncate)         # now, not when the first chunk is asked for
        return self._id_chunks_of_encodings(texts, special, max_length, truncate)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Readable text: pieces joined, no blanks inside Chinese. Raises DataError for an id outside the vocabulary."""
        tokens = []
        for id in map(int, ids):
            if not 0 <= id < self.size:
                raise DataError(f"id {id} is outside the vocabulary of {self.size} tokens.", fix="Decode ids of this tokenizer's model.")
            if not (skip_special and id in self.special_ids) and self.vocab.tokens[id]:
                tokens.append(self.vocab.tokens[id])
        return join(tokens)

    def save(self, folder: Path) -> None:
        """Write vocab.txt, tokenizer_config.json and tokenizer.json, which transformers' AutoTokenizer opens with the same ids; with jieba
        as a RoFormerTokenizer, which needs rjieba. Raises ConfigError for a pre_tokenize that is a function, which a file can't hold."""
        if callable(self.pre_tokenize):
            raise ConfigError("pre_tokenize is a function, which can't be saved.", fix="Save with pre_tokenize='jieba' or None, "
                              "and pass the function again after loading.")
        jieba = {"tokenizer_class": "RoFormerTokenizer", "pre_tokenize": "jieba"}
        config = {
            **(jieba if self.pre_tokenize else {"tokenizer_class": "BertTokenizer"}),
            "do_lower_case": self.lower, "strip_accents": self.strip_accents, "tokenize_chinese_chars": self.cjk,
            **{f"{token[1:-1].lower()}_token": token for token in SPECIAL if token in self.vocab},
            "added_tokens_decoder": {str(self.vocab.id(token)): _added(token) for token in (*SPECIAL, *self.added) if token in self.vocab},
        }
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.vocab.save(folder / "vocab.txt")
        whole = RustTokenizer.from_str(self._rust.to_str())     # for what vocab.txt alone doesn't open as: RoFormer's words, ModernBERT
        whole.post_processor = processors.BertProcessing(("[SEP]", self.sep_id), ("[CLS]", self.cls_id))
        whole.decoder = decoders.WordPiece()
        (folder / "tokenizer.json").write_bytes(whole.to_str(pretty=True).encode("utf-8"))
        (folder / "tokenizer_config.json").write_bytes((json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode("utf-8"))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens by id."""
        return self.vocab.tokens

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.vocab)

    @property
    def pad_id(self) -> int:
        return self.vocab.id("[PAD]")

    @property
    def unk_id(self) -> int:
        return self.vocab.id("[UNK]")

    @property
    def cls_id(self) -> int:
        return self.vocab.id("[CLS]")

    @property
    def sep_id(self) -> int:
        return self.vocab.id("[SEP]")

    @property
    def eos_id(self) -> int:
        """[SEP], which ends a text."""
        return self.sep_id

    @property
    def mask_id(self) -> int:
        """Raises DataError for a vocabulary without [MASK]."""
        return self.vocab.id("[MASK]")

    def __reduce__(self) -> tuple[object, ...]:                 # Rust objects with a Python hook can't be pickled; the arguments can
        return _rebuild, (self.vocab.tokens, self.lower, self.cjk, self.strip_accents, self.pre_tokenize, self.added)

    def _split(self, texts: Sequence[str]) -> list[Pieces]:
        if self._cut is not None:
            return [self._split_words(mend(text), self._cut) for text in texts]
        mended = [mend(text) for text in texts]
        found = iter(self._rust.encode_batch([text for text in mended if len(text) <= CHUNK], add_special_tokens=False))
        return [Pieces((one := next(found)).ids, one.tokens, one.offsets) if len(text) <= CHUNK else self._split_long(text)
                for text in mended]

    def _split_long(self, text: str) -> Pieces:
        """Part by part, where the encoder would need 230 bytes a byte; the tokens are the vocabulary's own strings, not copies."""
        out, base = Pieces([], [], []), 0
        for part in self._in_bulk().parts(text, CHUNK):
            found = self._rust.encode(part, add_special_tokens=False)
            out.ids.extend(found.ids)
            out.tokens.extend([self.vocab.tokens[id] for id in found.ids])
            out.offsets.extend([(base + start, base + end) for start, end in found.offsets])
            base += len(part)
        return out

    def _in_bulk(self) -> Bulk:
        if self._bulk is None:
            fold = partial(_fold, lower=self.lower, strip_accents=self.strip_accents, cjk=self.cjk)
            self._bulk = Bulk(self._rust, fold, {token: self.vocab.id(token) for token in self._tokens_in_text},
                              cls_id=self.cls_id, sep_id=self.sep_id)
        return self._bulk

    def _id_chunks_of_encodings(self, texts: Iterable[str], special: bool, max_length: int | None, truncate: Side) -> Iterator[Rows]:
        waiting = iter(texts)
        while group := list(islice(waiting, 256)):
            ids = [one.ids for one in self.encode_batch(group, special=special, max_length=max_length, truncate=truncate)]
            lengths = np.fromiter(map(len, ids), np.int64, len(ids))
            yield Rows(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths)

    def _split_words(self, text: str, cut: WordCutter) -> Pieces:
        """The way of the hook: raw text at special tokens, normalised text at words, words in the vocabulary or through WordPiece."""
        out, base = Pieces([], [], []), 0
        for number, part in enumerate(self._whole.split(text)):
            if number % 2:                                      # the regular expression's group: a special token
                _append(out, self.vocab.id(part), part, base, base + len(part))
            else:
                normal, source = normalize(part, lower=self.lower, strip_accents=self.strip_accents, cjk=False)
                for start, end in align(normal, cut(normal)):
                    for id, token, (low, high) in zip(*self._pieces(normal[start:end]), strict=True):
                        _append(out, id, token, base + source[start + low], base + source[start + high - 1] + 1)
            base += len(part)
        return out

    def _pieces(self, word: str) -> Pieces:
        if word in self.vocab:
            return Pieces([self.vocab.index[word]], [word], [(0, len(word))])
        if word not in self._known:
            if len(self._known) >= 65536:
                self._known.clear()
            found = self._word.encode(word, add_special_tokens=False)
            self._known[word] = Pieces(found.ids, found.tokens, found.offsets)
        return self._known[word]


def _append(pieces: Pieces, id: int, token: str, start: int, end: int) -> None:
    pieces.ids.append(id)
    pieces.tokens.append(token)
    pieces.offsets.append((start, end))


def _fold(char: str, *, lower: bool, strip_accents: bool | None, cjk: bool) -> str:
    return normalize(char, lower=lower, strip_accents=strip_accents, cjk=cjk)[0]


def _added(token: str) -> dict[str, str | bool]:
    return {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def _rebuild(tokens: tuple[str, ...], lower: bool, cjk: bool, strip_accents: bool | None,
             pre_tokenize: Callable[[str], list[str]] | Literal["jieba"] | None, added: tuple[str, ...]) -> WordPiece:
    return WordPiece(Vocab(tokens), lower=lower, cjk=cjk, strip_accents=strip_accents, pre_tokenize=pre_tokenize, added=added)
