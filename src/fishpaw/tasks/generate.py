"""Continue texts, or answer them: the two sides of decoding, text -> prompts and hypotheses -> text, for causal models and UniLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fishpaw.contracts import Batch
from fishpaw.data.collate import pad
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.decoding.walk import Streamed
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.encoding import Encoding
from fishpaw.text.wordpiece import WordPiece

__all__ = ["Generate", "generator"]


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
        if not texts:
            raise DataError("There is no prompt.", fix="Give at least one text.")
        room = getattr(self.model.position, "length", None)
        if room is not None and room <= max_new:
            raise ConfigError(f"{max_new} new tokens, but the model has {room} positions.", fix="Ask for fewer.")
        features = [self._prompt(text, None if room is None else room - max_new) for text in texts]
        padded = pad(features, fill=self.model.config.pad_id, side="left")
        segments = padded.segments if self.model.config.segments else None
        return Batch.padded(padded.ids, keep=padded.keep, segments=segments).to(self.model.embedding.tokens.weight.device)

    def decode(self, hypothesis: Hypothesis) -> str:
        """The text of a hypothesis, without what ended it."""
        return self.tokenizer.decode(hypothesis.content)

    def pieces(self, stream: Iterator[Streamed]) -> Iterator[str]:
        """The text of a single prompt's stream, piece by piece: what each token adds, held back while a character is incomplete."""
        tokens: list[int] = []
        shown = ""
        for one in stream:
            if one.token in self.ends and one.last and one.ended:
                break
            tokens.append(one.token)
            text = self.tokenizer.decode(tokens)
            if text.startswith(shown) and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        whole = self.tokenizer.decode(tokens)
        if whole.startswith(shown) and len(whole) > len(shown):
            yield whole[len(shown) :]

    def _prompt(self, text: str, room: int | None) -> Encoding:
        if isinstance(self.tokenizer, ByteLevel):
            encoding = self.tokenizer.encode(text, max_length=room, truncate="left", special=False)
            return encoding if encoding.ids else _only(self.tokenizer.eos_id)
        encoding = self.tokenizer.encode(text, max_length=room, truncate="left")
        if self.model.mask.clock == "unilm":
            return encoding
        return Encoding(encoding.ids[:-1], encoding.segments[:-1], encoding.tokens[:-1], encoding.offsets[:-1])


def _only(token: int) -> Encoding:
    return Encoding([token], [0], [""], [(0, 0)])


def generator(seed: int | None) -> torch.Generator | None:
    """A random source for sampling; None draws from torch's own."""
    return None if seed is None else torch.Generator().manual_seed(seed)
