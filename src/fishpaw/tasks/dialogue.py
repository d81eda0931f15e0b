"""Talk: one causal model of whole conversations, trained on all replies of one at once, that answers a history of any number of turns.

The sequence is that of tasks/turns.py; a model with a chat template, unless trained here, answers through its template. arXiv:1911.00536.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw import metrics
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.collate import pack, pad
from fishpaw.data.conversations import Conversation
from fishpaw.data.fingerprint import fingerprint
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import Limits, check_real, check_whole
from fishpaw.decoding.processors import Processor
from fishpaw.decoding.settings import Settings
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.losses.generation import masked_cross_entropy, next_tokens
from fishpaw.model.transformer import Transformer
from fishpaw.switch import Spec
from fishpaw.tasks.generate import Generate, generator
from fishpaw.tasks.relevance import choices, relevance
from fishpaw.tasks.settings import WithSettings, read_settings
from fishpaw.tasks.training import imprint, refuse_ending, seeded
from fishpaw.tasks.turns import Feature, Layout, log_probabilities
from fishpaw.text.chat import read_template, render
from fishpaw.text.encoding import Tokenizer
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.launch import leads
from fishpaw.train.loop import Result, fit
from fishpaw.train.options import Options
from fishpaw.weights.changes import gathered
from fishpaw.weights.load import inspect, tell, tokenizer_of
from fishpaw.weights.save import save

__all__ = ["TOP_5", "Dialogue", "Rank", "small"]

_log = logging.getLogger("fishpaw")
_FEW = 200                       # conversations; of fewer every character is kept
_LENGTH = 512

Rank = Callable[["Dialogue", Sequence[str], Sequence[Hypothesis]], list[float]]
"""(task, history, candidates) -> a number each, larger is better: tasks/rerank.py."""

TOP_5 = Settings(sample=True, top_k=5)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch: conversations without padding, and what is asked: targets [m] behind the flat places `at` [m]."""

    texts: Batch
    at: Tensor
    targets: Tensor


@dataclasses.dataclass(frozen=True)
class Unsaid:
    """A processor: these tokens never."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor(self.tokens, dtype=torch.long, device=logits.device), float("-inf"))


class Dialogue:
    """A causal model, its tokenizer, and the longest conversation in tokens: of longer ones it reads the last turns that fit, whole; a last
    turn too long by itself loses its beginning.

    A history is a list of texts, turn after turn, the last one to be answered; no turn at all asks for an opening. template: the chat
    template to answer through instead of the layout of tasks/turns.py; training drops it.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, max_length: int = _LENGTH, template: str | None = None) -> None:
        if model.encoder is not None:
            raise ConfigError("An encoder-decoder doesn't read a conversation as one text.", fix="Take a causal model, or an encoder.")
        if model.mask.clock != "causal":
            raise ConfigError(f"The model's mask is {model.mask.clock}: it doesn't read a conversation as it grows.",
                              fix='Turn it: changes={"mask": "causal"}, or --change mask=causal.')
        check_whole("max_length", max_length, 8, None)
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = min(max_length, model.longest or max_length)
        self.template = template
        self.layout = Layout(tokenizer)
        self.writer = Generate(model, tokenizer, ends=None if template is not None else (self.layout.end,))
        self._start = imprint(model)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        revision: str | None = None,
        family: str | None = None,
        mask: Spec | None = None,
        position: Spec | None = None,
        attention: Spec | None = None,
        norm: Spec | None = None,
        residual_scores: bool | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Dialogue:
        """A saved task, any causal model (one with a chat template answers through it), or an encoder, whose mask becomes causal.

        max_length: in tokens, by default 512 or what was saved; never beyond the model's positions. family, mask … changes: as of fp.load.
        Errors: ConfigError for a model that can't decode; those of fp.load.
        """
        turned = gathered(mask, position, attention, norm, None, residual_scores, None, changes)
        model, found = inspect(name, changes=turned, revision=revision, family=family)
        if model.encoder is None and model.mask.clock == "full" and "mask" not in turned:
            model, found = inspect(name, changes={**turned, "mask": "causal"}, revision=revision, family=family)
        tokenizer = tokenizer_of(found)
        tell(found)
        settings = read_settings(found.folder)
        trained = settings.get("task") == "dialogue"
        length = settings.get("max_length", _LENGTH) if trained else _LENGTH
        if isinstance(length, bool) or not isinstance(length, int):
            raise CheckpointError(f"{found.folder}: its task.json doesn't hold the settings of a dialogue.", fix="Save the task again.")
        task = cls(model, tokenizer, max_length=length if max_length is None else max_length,
                   template=None if trained else read_template(found.folder))
        if max_length is not None and task.max_length < max_length:
            _log.warning("max_length is %d, but the model has %d positions: conversations are cut there", max_length, task.max_length)
        return task

    @classmethod
    def new(
        cls,
        conversations: Sequence[Conversation],
        *,
        config: ModelConfig | None = None,
        max_length: int = 256,
        least: int | None = None,
        seed: int = 0,
    ) -> Dialogue:
        """A small causal RoFormer from random values with the characters of the conversations as its vocabulary. config: another shape; its
        vocabulary is set here. least: as of Classify.new; None: 2, of fewer than 200 conversations 1. DataError without a character."""
        least = least if least is not None else 1 if len(conversations) < _FEW else 2
        vocab = characters([turn for one in conversations for turn in one.turns], least=least)
        shape = (config or small(len(vocab))).change({"vocab_size": len(vocab)})
        with seeded(seed):
            model = Transformer(shape)
        return cls(model.eval(), WordPiece(vocab), max_length=max_length)

    def encode(self, history: Sequence[str], *, max_new: int = 0) -> Feature:
        """The last turns that leave room for `max_new` tokens. Errors: DataError for one string or a turn that is none, ConfigError where
        no token would fit."""
        _check(history)
        room = self.max_length - max_new
        if room <= len(self.layout.start) + 1:
            raise ConfigError(f"{max_new} new tokens of {self.max_length} in all leave none to a turn.", fix="Ask for fewer (max_new).")
        return self.layout.latest(self.layout.turns(history), room)

    def prompts(self, histories: Sequence[Sequence[str]], *, max_new: int) -> Batch:
        """Histories as what a stepper starts with, padded on the left; errors as of `encode`."""
        if self.template is not None:
            return self.writer.encode([self._rendered(history, max_new) for history in histories], max_new=max_new, special=False)
        return self.lay([self.encode(history, max_new=max_new) for history in histories])

    def lay(self, features: Sequence[Feature]) -> Batch:
        """Features as one batch, padded on the left."""
        padded = pad(features, fill=self.model.config.pad_id, side="left")
        segments = padded.segments if self.model.config.segments > 1 else None
        return Batch.padded(padded.ids, keep=padded.keep, segments=segments).to(self.model.table.device)

    def stepper(self, turns: int, *, hidden: bool = False) -> TransformerStepper:
        """What continues histories of so many turns: its tokens are of the other speaker's segment than the last turn's. hidden: keeps the
        hidden states, for contrastive search."""
        speaker = turns % 2 if self.model.config.segments > 1 and self.template is None else 0
        return TransformerStepper(self.model, segment=speaker, hidden=hidden)

    def limits(self, max_new: int, min_new: int = 1) -> Limits:
        """Bounds of a reply, which has one token at least unless min_new is 0."""
        return self.writer.limits(max_new, min_new)

    def fit(
        self,
        train: Iterable[Conversation],
        dev: Iterable[Conversation] | None = None,
        *,
        options: Options | None = None,
        out: str | Path | None = None,
        speaker: int | None = None,
        alone: float = 0.1,
        resume: bool = True,
        progress: bool | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> Result:
        """Train in place on every next token, so that one pass learns all replies of a conversation, and keep the weights of the least loss
        on `dev`. A conversation beyond max_length is read in several pieces of whole turns. speaker: learn only what this one says, 0 who
        began or 1 who answered; None: both. alone: share of the replies that are learned once more without their
        history, as answers to a turn without words: by that re-ranking and relevance know how probable a reply is to anything. Errors:
        ConfigError for a head with an ending of its own. Other arguments, errors and signals: tasks.classify.Classify.fit and
        train.loop.fit."""
        if speaker not in (None, 0, 1) or isinstance(speaker, bool):
            raise ConfigError(f"speaker is {speaker!r}; allowed: 0, 1 or None.", fix="0 begins a conversation, 1 answers; None is both.")
        check_real("alone", alone, "0 to 1", lambda value: 0 <= value <= 1)
        refuse_ending(self.model, "the loss of a conversation")
        options = options or Options()
        given, chance = self._tokens(train, "train"), random.Random(options.seed)
        features = [piece for turns in given for piece in self.layout.pieces(turns, self.max_length)]
        features += [self.layout.alone(turns, place, self.max_length)
                     for turns in given for place in range(1, len(turns)) if chance.random() < alone]
        features = [one for one in features if speaker is None or speaker in one.segments[one.asked :]]
        held_out = None if dev is None else self._pieces(dev, "dev")
        if not features:
            raise DataError(f"Speaker {speaker} says nothing in train.", fix="Give conversations of two turns or more.")
        shortened = sum(one.cut for one in features)
        if shortened:
            _log.warning("%d turns are longer than max_length, %d tokens, and lost their beginning", shortened, self.max_length)

        def collate(features: list[Feature]) -> Rows:
            batch = pack(features, segments=True)
            at, targets = next_tokens(batch, segment=speaker)
            row = batch.row[at]
            asked = at + 1 - batch.first[row] >= torch.tensor([one.asked for one in features])[row]
            return Rows(batch if self.model.config.segments > 1 else dataclasses.replace(batch, segments=None), at[asked], targets[asked])

        self.template, self.writer = None, Generate(self.model, self.tokenizer, ends=(self.layout.end,))
        result = fit(
            self.model,
            features,
            loss=_loss,
            collate=collate,
            options=options,
            out=out,
            evaluate=None if held_out is None else lambda model: self._perplexity(held_out),
            monitor="-loss",
            resume=resume,
            identity=None if out is None else self._identity(held_out, speaker, alone),
            progress=progress,
            report=report,
        )
        if out is not None and leads():
            self.save(Path(out) / "model")
        return result

    def evaluate(
        self, conversations: Iterable[Conversation], *, samples: int = 200, settings: Settings = TOP_5, max_new: int = 32, seed: int = 0
    ) -> dict[str, float]:
        """loss (nats a token) and perplexity of all turns; of `samples` places drawn by `seed`, the history before each:

        relevance, relevance_mutual: whether the true next turn is told from a reply of another conversation, by log-probability a token and
        by mutual information with the history (tasks/relevance.py); distinct_1, distinct_2: different tokens and pairs of tokens among all
        of the replies that are made. Errors: DataError without two conversations, ConfigError for a model with a chat template, to which
        this layout is strange, and for a head with an ending of its own."""
        if self.template is not None:
            raise ConfigError("The model answers through its chat template.", fix="Train it on conversations first; then measure.")
        given = list(conversations)
        features, found = self._pieces(given, "the data"), choices(given, samples=samples, seed=seed)
        figures = self._perplexity(features)
        figures["relevance"], figures["relevance_mutual"] = relevance(self.model, self.layout, found, max_length=self.max_length)
        replies = self.candidates([one.history for one in found], settings, max_new=max_new, seed=seed)
        return figures | {f"distinct_{n}": metrics.distinct([one.content for one, *_ in replies], n) for n in (1, 2)}

    def candidates(
        self, histories: Sequence[Sequence[str]], settings: Settings = TOP_5, *, max_new: int = 32, min_new: int = 1, batch_size: int = 16,
        seed: int | None = None,
    ) -> list[list[Hypothesis]]:  # fmt: skip
        """settings.n replies to each history, not yet text. seed: each history has random numbers of its own, whatever stands beside it."""
        check_whole("batch_size", batch_size, 1, None)
        for history in histories:
            _check(history)
        limits, found = self.limits(max_new, min_new), list[list[Hypothesis]]([[]] * len(histories))
        for parity in (0, 1):
            places = [place for place, history in enumerate(histories) if len(history) % 2 == parity]
            places.sort(key=lambda place: sum(map(len, histories[place])))
            for first in range(0, len(places), batch_size):
                some = places[first : first + batch_size]
                chances = [one for place in some if (one := generator(seed, place)) is not None]
                stepper = self.stepper(parity, hidden=settings.contrastive_k is not None)
                groups = settings.search(stepper, self.prompts([histories[place] for place in some], max_new=max_new), limits=limits,
                                         processors=self._processors(settings, limits), generator=chances or None)
                for place, group in zip(some, groups, strict=True):
                    found[place] = [dataclasses.replace(one, prompt=place) for one in group]
        return found

    def predict(
        self, histories: Sequence[Sequence[str]], settings: Settings = TOP_5, *, max_new: int = 32, min_new: int = 1,
        rank: Rank | None = None, batch_size: int = 16, seed: int | None = None,
    ) -> list[str]:  # fmt: skip
        """A reply to each history: the first of settings.n, or the best of them by `rank`. By default each token is drawn from the 5
        likeliest. Penalties look at the reply only: in a history they would meet the end token. Special tokens other than the end are
        never said, unless by a chat template. seed: None draws anew."""
        if self.template is not None and rank is not None:
            raise ConfigError("Replies through a chat template are not re-ranked.", fix="Leave rank out.")
        found = self.candidates(histories, settings, max_new=max_new, min_new=min_new, batch_size=batch_size, seed=seed)
        return [self.writer.decode(self._best(history, group, rank)) for history, group in zip(histories, found, strict=True)]

    def reply(
        self, history: Sequence[str], settings: Settings = TOP_5, *, max_new: int = 32, min_new: int = 1, rank: Rank | None = None,
        seed: int | None = None,
    ) -> str:  # fmt: skip
        """The reply to one history, as of `predict`."""
        return self.predict([history], settings, max_new=max_new, min_new=min_new, rank=rank, seed=seed)[0]

    def stream(
        self, history: Sequence[str], settings: Settings = TOP_5, *, max_new: int = 32, min_new: int = 1, seed: int | None = None
    ) -> Iterator[str]:
        """The reply to one history, piece by piece as it comes; joined they are what `reply` gives (settings of one answer, no beams)."""
        limits, prompts = self.limits(max_new, min_new), self.prompts([history], max_new=max_new)
        stepper = self.stepper(len(history), hidden=settings.contrastive_k is not None)
        return self.writer.pieces(settings.stream(stepper, prompts, limits=limits, processors=self._processors(settings, limits),
                                                  generator=generator(seed)))

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer and settings to a folder that `load` opens and, where it has the architecture, transformers."""
        settings = {} if self.template is not None else {"task": "dialogue", "max_length": self.max_length}
        save(self.model, folder, WithSettings(self.tokenizer, settings))

    def _processors(self, settings: Settings, limits: Limits) -> list[Processor]:
        """Those of the settings, and a ban on what has no text: a reply of [PAD] alone would be empty. A template's tokens are its own."""
        config, ends = self.model.config, set(limits.ends)
        unsaid = {*self.tokenizer.special_ids, *range(self.tokenizer.size, config.vocab_size)} - ends if self.template is None else set()
        bans = [Unsaid(tuple(sorted(id for id in unsaid if id < config.vocab_size)))] if unsaid else []
        return settings.processors(constraints=bans, prompt=False, ends=limits.ends)

    def _best(self, history: Sequence[str], group: Sequence[Hypothesis], rank: Rank | None) -> Hypothesis:
        if rank is None or len(group) == 1:
            return group[0]
        scores = rank(self, history, group)
        return group[max(range(len(group)), key=lambda one: scores[one])]

    def _tokens(self, conversations: Iterable[Conversation], what: str) -> list[list[list[int]]]:
        given = list(conversations)
        for index, one in enumerate(given):
            if not isinstance(one, Conversation):
                raise DataError(f"Conversation {index} is a {type(one).__name__}.", fix="Give Conversation(turns=(…, …)).")
        if not given:
            raise DataError(f"There is no conversation in {what}.", fix="Give at least one, of two turns or more.")
        tokens = iter(self.layout.turns([turn for one in given for turn in one.turns]))           # at once: many threads in Rust
        return [[next(tokens) for _ in one.turns] for one in given]

    def _pieces(self, conversations: Iterable[Conversation], what: str) -> list[Feature]:
        return [piece for turns in self._tokens(conversations, what) for piece in self.layout.pieces(turns, self.max_length)]

    def _perplexity(self, features: Sequence[Feature]) -> dict[str, float]:
        logs = torch.cat(log_probabilities(self.model, features)).double()
        loss = -float(logs.mean())
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def _rendered(self, history: Sequence[str], max_new: int) -> str:
        """As the chat template has it: who is answered is the user. The oldest turns go until the rest fits, two at a time."""
        assert self.template is not None
        if not history:
            raise DataError("A model with a chat template answers; it doesn't begin.", fix="Give at least one turn.")
        special = _special(self.tokenizer)
        room = self.max_length - max_new
        for first in range(0 if len(history) % 2 else 1, len(history), 2):
            said = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(history[first:])]
            text = render(said, template=self.template, special=special)
            if len(self.tokenizer.encode(text, special=False)) <= room:
                break
        return text

    def _identity(self, held_out: Sequence[Feature] | None, speaker: int | None, alone: float) -> dict[str, Any]:
        """What else a run depends on besides what train.loop knows of."""
        return {
            "max_length": self.max_length,
            "speaker": "both" if speaker is None else speaker,
            "alone": alone,
            "dev": "none" if held_out is None else fingerprint(held_out)[:16],
            "model": {**self.model.config.to_dict(), "starting weights": self._start},
        }


def small(vocab_size: int) -> ModelConfig:
    """A causal RoFormer that learns to chat about a small subject in minutes: 4 layers of 256."""
    return ModelConfig(
        family="roformer",
        vocab_size=vocab_size,
        hidden_size=256,
        layers=4,
        attention_heads=4,
        intermediate_size=1024,
        position="rotary",
        mask="causal",
        heads=("mlm",),
    )


def _check(history: object) -> None:
    if isinstance(history, str) or not isinstance(history, Sequence) or not all(isinstance(turn, str) for turn in history):
        raise DataError("The history is no list of turns.", fix='Give a list of strings: ["你好", "你好呀", "吃了吗"].')


def _loss(model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    return masked_cross_entropy(model(rows.texts, logits_at=rows.at).logits, rows.targets)


def _special(tokenizer: Tokenizer) -> dict[str, str]:
    """What templates call bos_token, eos_token …: those that the tokenizer has."""
    found = {}
    for role in ("bos", "eos", "pad", "unk"):
        try:
            id = getattr(tokenizer, f"{role}_id", None)
        except DataError:
            continue
        if id is not None:
            found[f"{role}_token"] = tokenizer.tokens[id]
    return found
