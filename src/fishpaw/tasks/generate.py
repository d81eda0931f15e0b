"""Continue texts, or answer them: the two sides of decoding, text -> prompts and hypotheses -> text, and the batches between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch

from fishpaw.contracts import Batch
from fishpaw.data.collate import pad
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import Limits, check_whole
from fishpaw.decoding.processors import Processor, check_prompts, of_prompts
from fishpaw.decoding.settings import Settings
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.decoding.stops import StopStrings
from fishpaw.decoding.termination import NonMonotone, SelfTerminating, Termination, ending_of, termination
from fishpaw.decoding.walk import Stop, Streamed
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.model.transformer import Transformer
from fishpaw.switch import spec_name, spec_options
from fishpaw.text.encoding import Encoding, Tokenizer

__all__ = ["Answer", "Generate", "generator"]

_STRAIGHT = ("'", '"')
_BREAKERS = "\n:\"*：“”"
_STRIDE = 0x9E3779B97F4A7C15                                     # 2**64 / the golden ratio: seeds of neighbours never meet
_WINDOW = 8                                                      # batches that are read and sorted by length before the first is answered


@dataclass(frozen=True)
class Answer:
    """text, and the hypothesis that it is of. why it ends: "end" (an end token), "stop" (a stop string), "loop" (another stop), "length"
    (max_new cut it)."""

    text: str
    hypothesis: Hypothesis
    why: str

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found = self.hypothesis
        return {"text": self.text, "score": found.score, "ended": found.ended, "why": self.why, "tokens": found.tokens,
                "log_probabilities": found.log_probabilities}  # fmt: skip


class Generate:
    """A model that decodes and its tokenizer.

    >>> task = Generate(*fp.load("…"))
    >>> found = greedy(task.stepper, task.encode(["今天天气"]), limits=task.limits(32))
    >>> task.decode(found[0])

    A causal model continues a text: what the tokenizer adds before it stays ([CLS]), what it adds behind it goes; a text without any token
    is the end token. A UniLM model answers [CLS] text [SEP]. An encoder-decoder's encoder reads the text as the tokenizer makes it.
    ends: the tokens that end an answer, by default the tokenizer's eos_id and those that the checkpoint names (eos_token_id of its
    generation_config.json or config.json: model.generation), and that of a head with an ending of its own; (tokenizer.line_id,) for a few
    lines shown to CPM-LM. read: how many prompts were encoded so far; cut: how many of these were longer than the model reads, and lost
    their beginning. Raises ConfigError for a model that can't decode, and for `ends` without the one that its head has.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, ends: Sequence[int] | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ending = ending_of(model)
        self.ends = _ends(model, tokenizer, self.ending) if ends is None else tuple(ends)
        if self.ending is not None and self.ending.end not in self.ends:
            raise ConfigError(f"The model ends with token {self.ending.end}, but ends is {self.ends}.", fix="Add it, or leave ends out.")
        self.read = self.cut = 0
        self.stepper = TransformerStepper(model, start_id=None if model.encoder is None else _start(model))
        self._dropped = _closing(tokenizer) if model.encoder is None and model.mask.clock != "unilm" else 0

    def limits(self, max_new: int, min_new: int = 0) -> Limits:
        """Bounds of a hypothesis that ends as this tokenizer's texts end."""
        return Limits(max_new=max_new, min_new=min_new, ends=self.ends)

    def encode(self, texts: Sequence[str], *, max_new: int = 0, special: bool = True) -> Batch:
        """Prompts, or what the encoder reads, padded on the left: `prompt` of each text."""
        if isinstance(texts, str) or not texts:
            raise DataError("There is no list of prompts.", fix="Give at least one text, in a list.")
        return self.lay([self.prompt(text, max_new=max_new, special=special) for text in texts])

    def prompt(self, text: str, *, max_new: int = 0, special: bool = True) -> Encoding:
        """One text as the model reads it. Where positions are limited, it loses its beginning so that `max_new` tokens fit, and is counted
        in `cut`. special: False for a text that holds the special tokens, as chat templates write them."""
        check_whole("max_new", max_new, 0, None)
        positions, reader = self.model.longest, self.model if self.model.encoder is None else self.model.encoder
        room, least = None if positions is None else positions - max_new, 2 if self.model.mask.clock == "unilm" else 1
        if room is not None and room < least:
            raise ConfigError(f"{max_new} new tokens, but the model has {positions} positions.", fix="Ask for fewer (max_new).")
        return self._prompt(text, room if reader is self.model else reader.longest, special)

    def lay(self, prompts: Sequence[Encoding]) -> Batch:
        """Prompts of any lengths as one batch, padded on the left."""
        reader = self.model if self.model.encoder is None else self.model.encoder
        padded = pad(prompts, fill=reader.config.pad_id, side="left")
        segments = padded.segments if reader.config.segments else None
        return Batch.padded(padded.ids, keep=padded.keep, segments=segments).to(self.model.table.device)

    def answers(self, prompts: Iterable[str | Encoding], settings: Settings, limits: Limits, *, constraints: Sequence[Processor] = (),
                stops: Sequence[Stop] = (), batch_size: int = 1, seed: int | None = None) -> Iterator[list[Answer]]:
        """The answers of each prompt (a text, or what `prompt` made of it), in their order, as soon as those before it are there.

        batch_size: prompts that are decoded together, with the answers that each has alone, rounding aside; above 1, so many times 8 are
        read ahead and sorted by length. constraints: those with something for each prompt (Choices, CopyOnly, CopyTags) have it for all
        prompts, in their order. seed: of sampling; each prompt has its own numbers, whatever it is batched with. An error in a prompt is
        raised when all prompts before it are answered.
        """
        check_whole("batch_size", batch_size, 1, None)
        if isinstance(prompts, str):
            raise DataError("There is no list of prompts.", fix="Give at least one text, in a list.")
        stepper, processors = self._stepper(settings), self._processors(settings, constraints, limits)
        if isinstance(prompts, Sized):
            check_prompts(processors, len(prompts))
        before = 0                                               # prompts of the windows that are done
        encoded = (self._encoding(one, limits) for one in prompts)
        for window in _windows(encoded, batch_size * _WINDOW if batch_size > 1 else 1):
            sources = [generator(seed, before + place) for place in range(len(window))]
            found: dict[int, list[Answer]] = {}
            said = 0
            for places in _batches([len(one) for one in window], batch_size):
                chances = [one for place in places if (one := sources[place]) is not None]
                groups = settings.search(stepper, self.lay([window[place] for place in places]), limits=limits, stops=stops,
                                         processors=of_prompts(processors, [before + place for place in places]),
                                         generator=chances or None)
                for place, group in zip(places, groups, strict=True):
                    found[place] = [self.answer(one, stops) for one in group]
                while said in found:
                    yield found.pop(said)
                    said += 1
            before += len(window)
        check_prompts(processors, before)

    def stream(self, prompt: str | Encoding, settings: Settings, limits: Limits, *, constraints: Sequence[Processor] = (),
               stops: Sequence[Stop] = (), seed: int | None = None, number: int = 0) -> Iterator[str]:
        """The one answer of a prompt, piece by piece; joined they are what `answers` gives the prompt of that number (from 0)."""
        processors = of_prompts(self._processors(settings, constraints, limits), [number])
        return self.pieces(settings.stream(self._stepper(settings), self.lay([self._encoding(prompt, limits)]), limits=limits, stops=stops,
                                           processors=processors, generator=generator(seed, number)), stops)

    def termination(self, settings: Settings, limits: Limits, constraints: Sequence[Processor] = ()) -> Termination | None:
        """What is proven of how long answers get; None where nothing was done for it: no ending of the model's own, nothing consistent."""
        if (self.ending is None and not settings.consistent) or settings.contrastive_k is not None:
            return None
        search = "sample" if settings.sample else "greedy" if settings.beams == 1 else "beam"
        return termination(self.ending, limits, search=search, answers=settings.n, length_penalty=settings.length_penalty or 0.0,
                           processors=self._processors(settings, constraints, limits))

    def answer(self, hypothesis: Hypothesis, stops: Sequence[Stop] = ()) -> Answer:
        """The text of a hypothesis, without what ended it, and why it ended."""
        text, stop = _cut(self.decode(hypothesis), stops)
        return Answer(text, hypothesis, "end" if hypothesis.closed else "stop" if stop else "loop" if hypothesis.ended else "length")

    def decode(self, hypothesis: Hypothesis) -> str:
        """The text of a hypothesis, without what ended it."""
        return self.tokenizer.decode(hypothesis.content)

    def pieces(self, stream: Iterator[Streamed], stops: Sequence[Stop] = ()) -> Iterator[str]:
        """The text of a single prompt's stream, piece by piece; joined they are the text of `answer`, bytes that turn out to be no UTF-8
        aside. Held back: an incomplete character, a straight quote until the two words after it tell on which side its blank goes, and
        what may be the beginning of a stop string."""
        tokens: list[int] = []
        shown = 0
        for one in stream:
            if one.token in self.ends and one.last and one.ended:
                break
            tokens.append(one.token)
            text = self.tokenizer.decode(tokens[: self._settled(tokens)])
            if text.endswith("\ufffd"):
                continue
            text, _ = _cut(text, stops)
            text = text[: min((stop.settled(text) for stop in stops if isinstance(stop, StopStrings)), default=len(text))]
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
        whole, _ = _cut(self.tokenizer.decode(tokens), stops)
        if len(whole) > shown:
            yield whole[shown:]

    def _encoding(self, prompt: str | Encoding, limits: Limits) -> Encoding:
        return prompt if isinstance(prompt, Encoding) else self.prompt(prompt, max_new=limits.max_new)

    def _stepper(self, settings: Settings) -> TransformerStepper:
        if settings.contrastive_k is None:
            return self.stepper
        return TransformerStepper(self.model, start_id=self.stepper.start_id, hidden=True)

    def _processors(self, settings: Settings, constraints: Sequence[Processor], limits: Limits) -> list[Processor]:
        """Penalties read a prompt that is continued, not a text that is answered."""
        continues = self.model.encoder is None and self.model.mask.clock != "unilm"
        breakers = () if settings.dry is None else _breakers(self.tokenizer)
        return settings.processors(constraints=constraints, prompt=continues, breakers=breakers, ends=limits.ends)

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
        self.read += 1
        whole = self.tokenizer.encode(text, max_length=None if room is None else room + dropped, truncate="left", special=special)
        if room is not None and len(whole) >= room + dropped:
            self.cut += len(self.tokenizer.encode(text, special=special)) > len(whole)
        end = len(whole) - dropped
        if not end:
            return Encoding([self.tokenizer.eos_id], [0], [""], [(0, 0)])
        return Encoding(whole.ids[:end], whole.segments[:end], whole.tokens[:end], whole.offsets[:end])


def _ends(model: Transformer, tokenizer: Tokenizer, ending: SelfTerminating | NonMonotone | None) -> tuple[int, ...]:
    """The tokenizer's end, those of the checkpoint, and that of the head; each once."""
    named = model.generation.get("eos_token_id")
    others = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys((tokenizer.eos_id, *others, *(() if ending is None else (ending.end,)))))


def _closing(tokenizer: Tokenizer) -> int:
    """How many tokens a tokenizer adds behind a text."""
    spans = tokenizer.encode("a").offsets
    return next((count for count, span in enumerate(reversed(spans)) if span != (0, 0)), 0)


def _start(model: Transformer) -> int:
    """The token that an encoder-decoder's answers begin with: padding, unless its head says another."""
    options = [spec_options(head) for head in model.config.heads if spec_name(head) == "lm"]
    return next((one["start"] for one in options if one.get("start") is not None), model.config.pad_id)


def _breakers(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens of line ends, colons, quotes and asterisks, as they follow a word."""
    found = [tokenizer.encode("a" + sign, special=False).ids for sign in _BREAKERS]
    return frozenset(ids[-1] for ids in found if len(ids) > 1) - tokenizer.special_ids


def _cut(text: str, stops: Sequence[Stop]) -> tuple[str, str | None]:
    """The text before the first stop string, and that."""
    found = None
    for stop in stops:
        if isinstance(stop, StopStrings):
            text, here = stop.cut(text)
            found = here or found
    return text, found


def _windows(prompts: Iterable[Encoding], size: int) -> Iterator[list[Encoding]]:
    """Lists of `size` prompts; what comes before one that can't be read first."""
    window: list[Encoding] = []
    try:
        for prompt in prompts:
            window.append(prompt)
            if len(window) == size:
                yield window
                window = []
    except FishpawError:
        if window:
            yield window
        raise
    if window:
        yield window


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Places of prompts of similar length, `size` together; the batch of the first prompt first, so that it needn't wait."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    return sorted((order[start : start + size] for start in range(0, len(order), size)), key=min)


def generator(seed: int | None, number: int = 0) -> torch.Generator | None:
    """A random source for sampling, another one for each number; None draws from torch's own."""
    if seed is None:
        return None
    check_whole("seed", seed, 0, 2**63 - 1)
    return torch.Generator().manual_seed((seed + number * _STRIDE) % 2**63)
