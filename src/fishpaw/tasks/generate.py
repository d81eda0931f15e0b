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
from fishpaw.switch import spec_name, spec_options
from fishpaw.text.encoding import Encoding, Tokenizer

__all__ = ["Generate", "generator"]

_STRAIGHT = ("'", '"')


class Generate:
    """A model that decodes and its tokenizer.

    >>> task = Generate(*fp.load("…"))
    >>> found = greedy(task.stepper, task.encode(["今天天气"]), limits=task.limits(32))
    >>> task.decode(found[0])

    A causal model continues a text: what the tokenizer adds before it stays ([CLS]), what it adds behind it goes; a text without any token
    is the end token. A UniLM model answers [CLS] text [SEP]. An encoder-decoder's encoder reads the text as the tokenizer makes it.
    ends: the tokens that end an answer, by default the tokenizer's eos_id and those that the checkpoint names (eos_token_id of its
    generation_config.json or config.json: model.generation); (tokenizer.line_id,) for a few lines shown to CPM-LM. cut: how many of the
    prompts encoded so far were longer than the model reads, and lost their beginning.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, ends: Sequence[int] | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ends = _ends(model, tokenizer) if ends is None else tuple(ends)
        self.cut = 0
        self.stepper = TransformerStepper(model, start_id=None if model.encoder is None else _start(model))
        self._dropped = _closing(tokenizer) if model.encoder is None and model.mask.clock != "unilm" else 0

    def limits(self, max_new: int, min_new: int = 0) -> Limits:
        """Bounds of a hypothesis that ends as this tokenizer's texts end."""
        return Limits(max_new=max_new, min_new=min_new, ends=self.ends)

    def encode(self, texts: Sequence[str], *, max_new: int = 0, special: bool = True) -> Batch:
        """Prompts, or what the encoder reads, padded on the left. Where positions are limited, texts lose their beginning so that `max_new`
        tokens fit, and are counted in `cut`. special: False for texts that hold the special tokens, as chat templates write them."""
        if isinstance(texts, str) or not texts:
            raise DataError("There is no list of prompts.", fix="Give at least one text, in a list.")
        check_whole("max_new", max_new, 0, None)
        positions, reader = self.model.longest, self.model if self.model.encoder is None else self.model.encoder
        room, least = None if positions is None else positions - max_new, 2 if self.model.mask.clock == "unilm" else 1
        if room is not None and room < least:
            raise ConfigError(f"{max_new} new tokens, but the model has {positions} positions.", fix="Ask for fewer (max_new).")
        features = [self._prompt(text, room if reader is self.model else reader.longest, special) for text in texts]
        padded = pad(features, fill=reader.config.pad_id, side="left")
        segments = padded.segments if reader.config.segments else None
        return Batch.padded(padded.ids, keep=padded.keep, segments=segments).to(self.model.table.device)

    def decode(self, hypothesis: Hypothesis) -> str:
        """The text of a hypothesis, without what ended it."""
        return self.tokenizer.decode(hypothesis.content)

    def pieces(self, stream: Iterator[Streamed]) -> Iterator[str]:
        """The text of a single prompt's stream, piece by piece; joined they are `decode` of the whole, bytes that turn out to be no UTF-8
        aside. Held back: an incomplete character, and a straight quote until the two words after it tell on which side its blank goes."""
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
        settled, words = len(tokens), 0
        for place in range(len(tokens) - 1, -1, -1):
            if words == 2:
                break
            token = self.tokenizer.tokens[tokens[place]] if tokens[place] < self.tokenizer.size else ""      # `decode` refuses it
            if token in _STRAIGHT:
                settled = place
            words += tokens[place] not in self.tokenizer.special_ids and not token.startswith("##")
        return settled

    def _prompt(self, text: str, room: int | None, special: bool) -> Encoding:
        dropped = self._dropped if special else 0
        whole = self.tokenizer.encode(text, max_length=None if room is None else room + dropped, truncate="left", special=special)
        if room is not None and len(whole) >= room + dropped:
            self.cut += len(self.tokenizer.encode(text, special=special)) > len(whole)
        end = len(whole) - dropped
        if not end:
            return Encoding([self.tokenizer.eos_id], [0], [""], [(0, 0)])
        return Encoding(whole.ids[:end], whole.segments[:end], whole.tokens[:end], whole.offsets[:end])


def _ends(model: Transformer, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokenizer's end, and those of the checkpoint; each once."""
    named = model.generation.get("eos_token_id")
    others = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys((tokenizer.eos_id, *others)))


def _closing(tokenizer: Tokenizer) -> int:
    """How many tokens a tokenizer adds behind a text."""
    spans = tokenizer.encode("a").offsets
    return next((count for count, span in enumerate(reversed(spans)) if span != (0, 0)), 0)


def _start(model: Transformer) -> int:
    """The token that an encoder-decoder's answers begin with: padding, unless its head says another."""
    options = [spec_options(head) for head in model.config.heads if spec_name(head) == "lm"]
    return next((one["start"] for one in options if one.get("start") is not None), model.config.pad_id)


def generator(seed: int | None) -> torch.Generator | None:
    """A random source for sampling; None draws from torch's own."""
    if seed is None:
        return None
    check_whole("seed", seed, 0, 2**63 - 1)
    return torch.Generator().manual_seed(seed)
