"""Any tokenizer.json of the `tokenizers` package: its ids and offsets, whatever normaliser, model and post-processor the file describes.

T5, mT5, XLM-R and ALBERT (Unigram), Llama (BPE with bytes for what is unknown), Qwen, GPT and ModernBERT (byte-level BPE after a regular
expression). Format: https://huggingface.co/docs/tokenizers
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import AddedToken
from tokenizers import Encoding as RustEncoding
from tokenizers import Tokenizer as RustTokenizer

from fishpaw.errors import CheckpointError, DataError, FishpawError
from fishpaw.text.encoding import Encoding, Side, check_pairs, room, share
from fishpaw.text.normalize import mend
from fishpaw.text.roles import Roles

__all__ = ["ROLES", "Pipeline", "added_tokens", "content", "named_tokens"]

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_USUAL = {                                                      # where no file says which is which
    "bos": ("<s>", "<|begin_of_text|>", "<bos>"), "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
    "unk": ("<unk>", "[UNK]"), "sep": ("[SEP]",), "pad": ("<pad>", "[PAD]", "<|padding|>"), "cls": ("[CLS]",),
    "mask": ("[MASK]", "<mask>"),
}


class Pipeline(Roles):
    """Encode and decode as the files say: {"tokenizer.json": bytes, and as far as there are "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja": bytes}.

    Special tokens stand where the file's post-processor puts them and have its segments; offsets are the library's. Which token is the
    padding, the mask … say the configurations, else the usual names. Raises CheckpointError for a file that is broken, or whose parts don't
    fit each other.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        config, names = _object(files, "tokenizer_config.json"), _object(files, "special_tokens_map.json")
        described = _object(files, "tokenizer.json")
        with _guarded(CheckpointError, "tokenizer.json:", "Fetch the file again."):
            self._rust = RustTokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
            self._rust.no_truncation()                          # the caller says how long, and pads
            self._rust.no_padding()
        self._add(added_tokens(config, described, _object(files, "added_tokens.json")))
        self._processor = self._rust.post_processor
        self._rust.post_processor = None
        vocab = self._rust.get_vocab(with_added_tokens=True)
        tokens = [""] * (max(vocab.values(), default=-1) + 1 if len(vocab) * 4 + 10**6 > max(vocab.values(), default=0) else 0)
        if not tokens:
            raise CheckpointError("tokenizer.json: its vocabulary is empty, or its ids are far apart.", fix="Fetch the file again.")
        for token, id in vocab.items():
            tokens[id] = token
        found = named_tokens(config, names)
        usual = {role: next((token for token in some if token in vocab), "") for role, some in _USUAL.items()}
        super().__init__(tokens, {role: vocab[token] for role in ROLES if (token := found.get(role) or usual[role]) in vocab}, files)
        whole = self._rust.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in whole.items() if token.special) | frozenset(self._named.values())
        self.encode("a", "b")                                   # a post-processor with holes panics here, not at the first text

    def encode(self, text: str, pair: str | None = None, *, max_length: int | None = None, truncate: Side = "right",
               special: bool = True) -> Encoding:
        """The ids of a text or a pair, with the special tokens of the file's post-processor unless `special` is False. At most `max_length`
        tokens: the longer text is cut first, on the side that `truncate` names."""
        return self.encode_batch([text], None if pair is None else [pair], max_length=max_length, truncate=truncate, special=special)[0]

    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None,
                     truncate: Side = "right", special: bool = True) -> list[Encoding]:
        """As `encode`, for many texts: one call into Rust, on all cores."""
        check_pairs(texts, pairs)
        added = self._processor.num_special_tokens_to_add(pairs is not None) if special and self._processor is not None else 0
        left = room(max_length, added, truncate)
        with _guarded(DataError, "a text can't be encoded:", "The tokenizer.json has no token for what is unknown: fetch it again."):
            firsts = self._split(texts)
            seconds: Sequence[RustEncoding | None] = [None] * len(firsts) if pairs is None else self._split(pairs)
            return [self._assemble(first, second, left, truncate, special) for first, second in zip(firsts, seconds, strict=True)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text, as the file's decoder joins it. Raises DataError for an id outside the vocabulary."""
        ids = self._within(ids)
        if skip_special:
            ids = [id for id in ids if id not in self.special_ids]
        with _guarded(DataError, "these ids can't be decoded:", "Decode ids of this tokenizer's model."):
            return str(self._rust.decode(ids, skip_special_tokens=skip_special))

    def __reduce__(self) -> tuple[object, ...]:
        return Pipeline, (self.files,)

    def _split(self, texts: Sequence[str]) -> list[RustEncoding]:
        return self._rust.encode_batch([mend(text) for text in texts], add_special_tokens=False)

    def _assemble(self, first: RustEncoding, second: RustEncoding | None, left: int | None, truncate: Side, special: bool) -> Encoding:
        if left is not None:
            lengths = share(len(first), 0 if second is None else len(second), left)
            first.truncate(lengths[0], direction=truncate)
            if second is not None:
                second.truncate(lengths[1], direction=truncate)
        if self._processor is not None:
            found = self._processor.process(first, second, special)
            return Encoding(found.ids, found.type_ids, found.tokens, found.offsets)
        if second is None:
            return Encoding(first.ids, [0] * len(first), first.tokens, first.offsets)
        return Encoding(first.ids + second.ids, [0] * len(first) + [1] * len(second), first.tokens + second.tokens,
                        first.offsets + second.offsets)

    def _add(self, listed: Sequence[tuple[int, str, object]]) -> None:
        """Tokens that only tokenizer_config.json or added_tokens.json lists, and a check that each has the id that its file gives it."""
        new: dict[str, AddedToken] = {}
        for _, text, token in listed:
            if text not in new and self._rust.token_to_id(text) is None:
                rules = {key: bool(token.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")} \
                    if isinstance(token, dict) else {"special": True}
                new[text] = AddedToken(text, **rules)
        self._rust.add_tokens(list(new.values()))               # at once: one by one takes the square of their number
        for id, text, _ in listed:
            if self._rust.token_to_id(text) != id:
                raise CheckpointError(f"added token {text!r:.60} has id {id}, but {self._rust.token_to_id(text)} in tokenizer.json.",
                                      fix="The tokenizer files are of different models: fetch them again.")


def added_tokens(config: Mapping[str, Any], described: Mapping[str, Any], more: Mapping[str, Any]) -> list[tuple[int, str, object]]:
    """(id, text, the token as it is written) of the tokens that are matched whole, sorted by id, as the generations of transformers wrote
    them: tokenizer_config.json's "added_tokens_decoder", tokenizer.json's "added_tokens", and all of added_tokens.json. The last of those
    with one id is the one that counts where they differ. Raises CheckpointError for what is no token or no id."""
    decoder, listed = config.get("added_tokens_decoder"), described.get("added_tokens")
    pairs = list(decoder.items()) if isinstance(decoder, dict) else []
    pairs += [(token.get("id"), token) for token in listed if isinstance(token, dict)] if isinstance(listed, list) else []
    pairs += [(id, token) for token, id in more.items()]
    found = []
    for id, token in pairs:
        text = content(token)
        if not text or mend(text) != text or not str(id).isdecimal() or len(str(id)) > 18:
            raise CheckpointError(f"an added token is {text!r:.60} with id {id!r:.60}.", fix="Correct added_tokens in the tokenizer files.")
        found.append((int(id), text, token))
    return sorted(found, key=lambda entry: entry[0])


def named_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """role -> token, of "pad_token" and its like in one file or several; the first that names a role counts."""
    return {role: token for config in reversed(configs) for role in ROLES if (token := content(config.get(f"{role}_token")))}


def content(token: object) -> str | None:
    """The text of a token, written as a string or as {"content": …}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        record = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: is not valid JSON.", fix="Fetch the file again.") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{name}: holds a {type(record).__name__}, not an object.", fix="Fetch the file again.")
    return record


@contextmanager
def _guarded(kind: type[FishpawError], what: str, fix: str) -> Iterator[None]:
    """The library raises bare `Exception`, and PanicException, no Exception at all; a class of its own it has for neither."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what} {str(error).strip() or 'it is damaged':.200}.", fix=fix) from None
