"""Continue texts, or answer them: the two sides of decoding, text -> prompts and hypotheses -> text, for causal models and UniLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fishpaw.contracts import Batch
from fishpaw.data.collate import pad
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import Limits, check_whole
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.decoding.walk import Streamed
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.encoding import Encoding
from fishpaw.text.wordpiece import WordPiece

__all__ = ["Generate", "generator"]

_STRAIGHT = ("'", '"')


class Generate:
    """A model that decodes and its tokenizer.

    >>> task = Generate(*fp.load("…"))
    >>> found = greedy(task.stepper, task.encode(["今天天气"]), limits=task.limits(32))
    >>> task.decode(found[0])

    A causal model continues [CLS] text; a UniLM model answers [CLS] text [SEP]; both end at [SEP]. Byte-level BPE has no such tokens: a
    text stands as it is, an empty one as the end token.
    """

    def __init__(self, model: Transformer, tokenizer: WordPiece | ByteLevel) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stepper = TransformerStepper(model)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return (self.tokenizer.sep_id,) if isinstance(self.tokenizer, WordPiece) else (self.tokenizer.eos_id,)

    def limits(self, max_new: int, min_new: int = 0) -> Limits:
        """Bounds of a hypothesis that ends as this tokenizer's texts end."""
        return Limits(max_new=max_new, min_new=min_new, ends=self.ends)

    def encode(self, texts: Sequence[str], *, max_new: int = 0) -> Batch:
        """Prompts, padded on the left. Where positions are limited, texts lose their beginning so that `max_new` tokens fit."""
        if isinstance(texts, str) or not texts:
            raise DataError("There is no list of prompts.", fix="Give at least one text, in a list.")
        check_whole("max_new", max_new, 0, None)
        positions = self.model.longest
        room, least = None if positions is None else positions - max_new, 2 if self.model.mask.clock == "unilm" else 1
        if room is not None and room < least:
            raise ConfigError(f"{max_new} new tokens, but the model has {positions} positions.", fix="Ask for fewer (max_new).")
        features = [self._prompt(text, room) for text in texts]
        padded = pad(features, fill=self.model.config.pad_id, side="left")
        segments = padded.segments if self.model.config.segments else None
        return Batch.padded(padded.ids, keep=padded.keep, segments=segments).to(self.model.table.device)

    def decode(self, hypothesis: Hypothesis) -> str:
        """The text of a hypothesis, without what ended it."""
        return self.tokenizer.decode(hypothesis.content)

    def pieces(self, stream: Iterator[Streamed]) -> Iterator[str]:
        """The text of a single prompt's stream, piece by piece; joined they are `decode` of the whole. Held back: an incomplete character,
        and a straight quote until the two words after it tell on which side its blank goes."""
        tokens: list[int] = []
        shown = 0
        for one in stream:
            if one.token in self.ends and one.last and one.ended:
                break
            tokens.append(one.token)
            text = self.tokenizer.decode(tokens[: self._settled(tokens)])
            if len(text) > shown and not text.endswith("\ufffd"):
                yield text[shown:]
                shown = len(text)
        whole = self.tokenizer.decode(tokens)
        if len(whole) > shown:
            yield whole[shown:]

    def _settled(self, tokens: Sequence[int]) -> int:
        """How many of the tokens have a text that no later token changes."""
        if isinstance(self.tokenizer, ByteLevel):
            return len(tokens)
        settled, words = len(tokens), 0
        for place in range(len(tokens) - 1, -1, -1):
            if words == 2:
                break
            token = self.tokenizer.vocab.tokens[tokens[place]] if tokens[place] < self.tokenizer.size else ""      # `decode` refuses it
            if token in _STRAIGHT:
                settled = place
            words += tokens[place] not in self.tokenizer.special_ids and not token.startswith("##")
        return settled

    def _prompt(self, text: str, room: int | None) -> Encoding:
        if isinstance(self.tokenizer, ByteLevel):
            encoding = self.tokenizer.encode(text, max_length=room, truncate="left", special=False)
            return encoding if encoding.ids else _only(self.tokenizer.eos_id)
        if self.model.mask.clock == "unilm":
            return self.tokenizer.encode(text, max_length=room, truncate="left")
        encoding = self.tokenizer.encode(text, max_length=None if room is None else room + 1, truncate="left")     # [SEP] goes
        return Encoding(encoding.ids[:-1], encoding.segments[:-1], encoding.tokens[:-1], encoding.offsets[:-1])


def _only(token: int) -> Encoding:
    return Encoding([token], [0], [""], [(0, 0)])


def generator(seed: int | None) -> torch.Generator | None:
    """A random source for sampling; None draws from torch's own."""
    if seed is None:
        return None
    check_whole("seed", seed, 0, 2**63 - 1)
    return torch.Generator().manual_seed(seed)
