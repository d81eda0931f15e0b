"""Read a text, write another: titles, summaries, questions, equations; by UniLM, one stack that reads in both directions and then writes
(arXiv:1905.03197), or by an encoder and a decoder (arXiv:1910.10683)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fishpaw import metrics, switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.collate import move, pack, pad
from fishpaw.data.fingerprint import fingerprint
from fishpaw.data.pairs import Pair
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import check_whole
from fishpaw.decoding.processors import Processor, check_prompts, of_prompts
from fishpaw.decoding.search import beam, greedy
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.losses.generation import masked_cross_entropy, next_tokens
from fishpaw.model.transformer import Transformer
from fishpaw.switch import Spec, spec_name
from fishpaw.tasks.classify import small
from fishpaw.tasks.encode import bar
from fishpaw.tasks.generate import Generate
from fishpaw.tasks.settings import WithSettings, read_settings
from fishpaw.tasks.training import imprint, named, refuse_ending, seeded
from fishpaw.text.encoding import Tokenizer
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.launch import leads
from fishpaw.train.loop import Result, fit
from fishpaw.train.options import Options
from fishpaw.weights.changes import gathered
from fishpaw.weights.load import inspect, tell, tokenizer_of
from fishpaw.weights.save import save

__all__ = ["Answer", "Feature", "Monitor", "Rows", "Seq2Seq", "cross_entropy", "plain"]

Monitor = Literal["-loss", "rouge", "bleu", "exact"]
"""What decides which weights are best: the loss on unseen pairs, or a figure of what is written for them, which takes longer."""

_log = logging.getLogger("fishpaw")
_FEW = 1000                      # texts; of fewer every character is kept
_LENGTHS = {"max_length": 256, "max_new": 64}
_WINDOW = 16                     # batches whose sources are sorted by length together


@dataclass(frozen=True)
class Answer:
    """score: its log-probability, by length to the power of length_penalty. ended: False where max_new cut it."""

    text: str
    score: float
    ended: bool


@dataclass(frozen=True)
class Feature:
    """The tokens of a source, with what the tokenizer adds, and of a target, its end included; one after the other what UniLM reads."""

    source: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.source) + len(self.target)

    @property
    def ids(self) -> list[int]:
        """Source and target."""
        return self.source + self.target

    @property
    def segments(self) -> list[int]:
        """0 for the source's tokens, 1 for the target's."""
        return [0] * len(self.source) + [1] * len(self.target)


@dataclass(frozen=True)
class Rows:
    """A batch: of UniLM packed, of a decoder padded beside encoder_batch, which its encoder reads. At the flat indices `at` [m] the
    tokens `targets` [m] are to be predicted."""

    batch: Batch
    encoder_batch: Batch | None
    at: Tensor
    targets: Tensor


Loss = Callable[[nn.Module, Rows], tuple[Tensor, Tensor]]


def cross_entropy(model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """Sum of -log p over the tokens of the targets, their ends included, and their number. Every token weighs the same."""
    logits = model(rows.batch, encoder_batch=rows.encoder_batch, logits_at=rows.at).logits
    return masked_cross_entropy(logits, rows.targets)


def plain(text: str) -> str:
    """What texts are measured by: their characters in lower case, without blanks, which tokenizers of Chinese don't keep."""
    return "".join(text.lower().split())


class Seq2Seq:
    """A Transformer with a UniLM mask, or an encoder and a decoder, and a tokenizer.

    max_length: tokens of a source, [CLS] and [SEP] included; longer ones are cut on the right. max_new: tokens of an answer, its end
    included. A longer target is cut, too, and counted in a line of the log; its last token isn't taught to be an end. Both together never
    exceed UniLM's positions: max_length is less there. Errors: ConfigError for another mask, no head that scores tokens, too few positions.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, max_length: int = 256, max_new: int = 64) -> None:
        if model.encoder is None and model.mask.clock != "unilm":
            raise ConfigError(f"The model's mask is {model.mask.clock!r}.", fix='Load it with Seq2Seq.load, or with mask="unilm".')
        check_whole("max_length", max_length, 3, None)
        check_whole("max_new", max_new, 2, None)
        self.model = model
        self.tokenizer = tokenizer
        self.max_new = max_new
        self.max_length = max_length
        self.max_length = self._room(max_new)
        self._writer = Generate(model, tokenizer, ends=(tokenizer.eos_id,))
        self._start = imprint(model)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        max_new: int | None = None,
        revision: str | None = None,
        family: str | None = None,
        mask: Spec | None = None,
        position: Spec | None = None,
        attention: Spec | None = None,
        norm: Spec | None = None,
        residual_scores: bool | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Seq2Seq:
        """A saved task, an encoder with its MLM head, which becomes a UniLM, or an encoder-decoder, as it is.

        max_length, max_new: by default 256 and 64, or what was saved. family, mask … changes: as of fp.load, switches to turn before
        training; heads that score no tokens are dropped. Errors: ConfigError where there is no head that scores tokens or for a
        mask that is no UniLM's; those of fp.load.
        """
        turned = gathered(mask, position, attention, norm, None, residual_scores, None, changes)
        model, found = inspect(name, changes={"mask": "unilm", **turned}, revision=revision, family=family)
        if model.encoder is not None:                            # its decoder's mask is its own
            model, found = inspect(name, changes=turned, revision=revision, family=family)
        heads = [head for head in model.config.heads if spec_name(head) in ("lm", "mlm")]
        if not heads:
            fix = 'Take a checkpoint that has one, or begin with a new one: changes={"heads": ["mlm"]}.'
            raise ConfigError(f"{name} holds no head that scores tokens.", fix=fix)
        lengths = _saved(found.folder)
        tokenizer = tokenizer_of(found)
        tell(found)
        model.set_heads(heads[:1])
        return cls(
            model, tokenizer,
            max_length=lengths["max_length"] if max_length is None else max_length,
            max_new=lengths["max_new"] if max_new is None else max_new,
        )  # fmt: skip

    @classmethod
    def new(
        cls,
        pairs: Iterable[Pair],
        *,
        config: ModelConfig | None = None,
        max_length: int = 256,
        max_new: int = 64,
        least: int | None = None,
        seed: int = 0,
    ) -> Seq2Seq:
        """A small UniLM RoFormer from random values with the characters of `pairs` as its vocabulary: for when there is no checkpoint.

        config: another shape, with an encoder for an encoder-decoder; its vocabulary, mask and heads are set here. least: times that a
        character must stand in the texts to be in the vocabulary; None: 2, of fewer than 1000 texts 1. Errors: DataError for texts
        without a character.
        """
        texts = [text for one in _checked(pairs) for text in (one.source, one.target)]
        vocab = characters(texts, least=least if least is not None else 1 if len(texts) < _FEW else 2)
        shape = config or small(1)
        changes: dict[str, Any] = {"vocab_size": len(vocab), "mask": "unilm", "heads": ("mlm",)}
        if shape.encoder is not None:
            own = switch.build("masks", shape.turns("mask")[0], shape).clock == "causal"
            changes |= {"mask": shape.mask if own else "causal", "encoder": shape.encoder.change({"vocab_size": len(vocab)})}
        with seeded(seed):
            model = Transformer(shape.change(changes))
        return cls(model.eval(), WordPiece(vocab), max_length=max_length, max_new=max_new)

    def encode(self, pairs: Iterable[Pair]) -> list[Feature]:
        """Pairs as tokens, sources and targets cut; how many targets were is told in the log. DataError for what is no pair."""
        given = _checked(pairs)
        sources = self._sources([one.source for one in given], self.max_length)
        encodings = self.tokenizer.encode_batch([one.target for one in given], special=False)
        targets = [[*one.ids, self.tokenizer.eos_id] for one in encodings]
        if cut := sum(len(target) > self.max_new for target in targets):
            _log.warning("%d of %d targets have more than %d tokens (max_new): the rest is left out", cut, len(targets), self.max_new)
        return [Feature(source, target[: self.max_new]) for source, target in zip(sources, targets, strict=True)]

    def collate(self, features: Sequence[Feature]) -> Rows:
        """A batch of them, on the CPU."""
        if self.model.encoder is None:
            batch = pack(features, segments=True)
            return Rows(batch, None, *next_tokens(batch, segment=1))
        start = self._writer.stepper.start_id
        assert start is not None
        batch = self._padded([Feature([], [start, *one.target]) for one in features], self.model.config, "right")
        sources = self._padded([Feature(one.source, []) for one in features], self.model.encoder.config, "right")
        return Rows(batch, sources, *next_tokens(batch))

    def fit(
        self,
        train: Iterable[Pair],
        dev: Iterable[Pair] | None = None,
        *,
        options: Options | None = None,
        out: str | Path | None = None,
        monitor: Monitor = "-loss",
        loss: Loss = cross_entropy,
        resume: bool = True,
        progress: bool | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> Result:
        """Train in place and keep the weights that are best on `dev` by `monitor`, written by greedy search where it asks for texts;
        without dev the last ones. loss(model, rows) -> (sum, count): another than `cross_entropy`. out: a folder for log, checkpoints and,
        at the end, the saved task in out/model; a run found there goes on, if it began with the same model, lengths, loss and data.
        Errors: ConfigError for a head with an ending of its own, whose loss is another. Other arguments, errors and signals:
        train.loop.fit."""
        if monitor not in ("-loss", "rouge", "bleu", "exact"):
            raise ConfigError(f"monitor is {monitor!r}.", fix='Choose "-loss", "rouge", "bleu" or "exact".')
        if loss is cross_entropy or dev is not None:
            refuse_ending(self.model, "its loss")
        folder, held_out = None if out is None else Path(out), None if dev is None else _checked(dev)
        features = self.encode(train)
        unseen = self.encode(held_out or [])
        for name, found in (("train", features), ("dev", held_out)):
            if found is not None and not found:
                raise DataError(f"There is no pair in {name}.", fix="Give at least one.")

        def evaluate(model: nn.Module) -> dict[str, float]:
            figures = {"loss": self._loss(unseen, 32)}
            if held_out and monitor != "-loss":
                figures |= _figures(held_out, self.stream([one.source for one in held_out]), plain)
            return figures

        result = fit(
            self.model,
            features,
            loss=loss,
            collate=self.collate,
            options=options or Options(),
            out=folder,
            evaluate=evaluate if held_out else None,
            monitor=monitor,
            resume=resume,
            identity=None if folder is None else self._identity(unseen if held_out else None, loss),
            progress=progress,
            report=report,
        )
        if folder is not None and leads():
            self.save(folder / "model")
        return result

    def evaluate(
        self,
        pairs: Iterable[Pair],
        *,
        beams: int = 1,
        length_penalty: float = 0.0,
        max_new: int | None = None,
        processors: Sequence[Processor] = (),
        split: Callable[[str], Sequence[Hashable]] = plain,
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> dict[str, float]:
        """loss a token (nats), rouge1, rouge2, rougeL, rouge (0.2, 0.4, 0.4 of them), bleu, and exact, the share of answers that are right
        throughout. split: a text to what is compared, by default its characters; `jieba.lcut` for words. Others: see predict. Errors:
        DataError for no pair, ConfigError for a head with an ending of its own."""
        given = _checked(pairs)
        if not given:
            raise DataError("There is nothing to evaluate on.", fix="Give at least one pair.")
        refuse_ending(self.model, "its loss")
        answers = self.predict([one.source for one in given], beams=beams, length_penalty=length_penalty, max_new=max_new,
                               processors=processors, batch_size=batch_size, progress=progress)  # fmt: skip
        return {"loss": self._loss(self.encode(given), batch_size), **_figures(given, answers, split)}

    def predict(
        self,
        texts: Sequence[str],
        *,
        beams: int = 1,
        length_penalty: float = 0.0,
        max_new: int | None = None,
        processors: Sequence[Processor] = (),
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> list[Answer]:
        """What the model writes for each text, in their order.

        beams: width of the beam search; 1: greedy. length_penalty: of it (decoding/search.py). max_new: tokens at most, by default the
        task's own. processors: what edits the scores on the way (decoding/processors.py); one that was made for each prompt counts the
        texts in their order. batch_size: texts at once. progress: a
        bar; None: on a terminal. Errors: DataError for one string instead of a list; ConfigError for a setting out of its range."""
        return list(self.stream(texts, beams=beams, length_penalty=length_penalty, max_new=max_new, processors=processors,
                                batch_size=batch_size, progress=progress))  # fmt: skip

    def stream(
        self,
        texts: Iterable[str],
        *,
        beams: int = 1,
        length_penalty: float = 0.0,
        max_new: int | None = None,
        processors: Sequence[Processor] = (),
        batch_size: int = 32,
        progress: bool | None = False,
    ) -> Iterator[Answer]:
        """As `predict`, one by one, in constant memory: texts, which may be without end, are read 16 batches ahead."""
        if isinstance(texts, str):
            raise DataError("Where a list of texts belongs stands one string.", fix="Give a list of texts.")
        if isinstance(texts, Sized):
            check_prompts(processors, len(texts))
        check_whole("batch_size", batch_size, 1, None)
        longest = self.max_new if max_new is None else max_new
        limits, room = self._writer.limits(longest), self._room(longest)
        reader, source = self.model.encoder or self.model, iter(texts)

        def write(sources: list[list[int]], processors: Sequence[Processor]) -> list[Hypothesis]:
            prompts = self._padded([Feature(one, []) for one in sources], reader.config, "left").to(self.model.table.device)
            if beams == 1:
                return greedy(self._writer.stepper, prompts, limits=limits, processors=processors)
            found = beam(self._writer.stepper, prompts, beams=beams, limits=limits, length_penalty=length_penalty, processors=processors)
            return [group[0] for group in found]

        read = 0
        with bar(texts, progress) as tell_done:
            while window := list(islice(source, _WINDOW * batch_size)):
                sources = self._sources(window, room)
                order = sorted(range(len(window)), key=lambda place: -len(sources[place]))
                answers: dict[int, Answer] = {}
                for first in range(0, len(order), batch_size):
                    places = order[first : first + batch_size]
                    own = of_prompts(processors, [read + place for place in places])
                    for place, found in zip(places, write([sources[place] for place in places], own), strict=True):
                        answers[place] = Answer(self._writer.decode(found), found.score, found.ended)
                    tell_done(len(places))
                yield from (answers[place] for place in range(len(window)))
                read += len(window)
        check_prompts(processors, read)

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer and settings to a folder that `load` opens and, where it has the architecture, transformers."""
        settings = {"task": "seq2seq", "max_length": self.max_length, "max_new": self.max_new}
        save(self.model, folder, WithSettings(self.tokenizer, settings))

    def _room(self, max_new: int) -> int:
        """Tokens of a source beside max_new new ones."""
        positions, encoder = self.model.longest, self.model.encoder
        if positions is not None and max_new + 3 > positions:     # [CLS] x [SEP], or a start
            raise ConfigError(f"{max_new} new tokens, but the model has {positions} positions.", fix="Ask for fewer (max_new).")
        limit = encoder.longest if encoder is not None else None if positions is None else positions - max_new
        return self.max_length if limit is None else min(self.max_length, limit)

    def _sources(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """A text without a token (byte-level BPE makes none of an empty one) is the end token."""
        return [one.ids or [self.tokenizer.eos_id] for one in self.tokenizer.encode_batch(texts, max_length=max_length)]

    def _padded(self, features: Sequence[Feature], config: ModelConfig, side: Literal["left", "right"]) -> Batch:
        padded = pad(features, fill=config.pad_id, side=side)
        return Batch.padded(padded.ids, keep=padded.keep, segments=padded.segments if config.segments else None)

    @torch.no_grad()
    def _loss(self, features: Sequence[Feature], batch_size: int) -> float:
        device, total, count = self.model.table.device, 0.0, 0.0
        order = sorted(features, key=len)
        with self.model.evaluating():
            for first in range(0, len(order), batch_size):
                part, number = cross_entropy(self.model, move(self.collate(order[first : first + batch_size]), device))
                total, count = total + float(part), count + float(number)
        return total / count

    def _identity(self, held_out: Sequence[Feature] | None, loss: Loss) -> dict[str, Any]:
        """What else a run depends on besides what train.loop knows of."""
        return {
            "max_length": self.max_length,
            "max_new": self.max_new,
            "loss": named(loss),
            "dev": "none" if held_out is None else fingerprint(held_out)[:16],
            "model": {**self.model.config.to_dict(), "starting weights": self._start},
        }


def _checked(pairs: Iterable[Pair]) -> list[Pair]:
    given = list(pairs)
    for index, one in enumerate(given):
        if not isinstance(one, Pair):
            raise DataError(f"Pair {index} is a {type(one).__name__}.", fix="Give Pair(source, target) of data.pairs.")
    return given


def _figures(pairs: Sequence[Pair], answers: Iterable[Answer], split: Callable[[str], Sequence[Hashable]]) -> dict[str, float]:
    found, true = [split(one.text) for one in answers], [split(one.target) for one in pairs]
    report = metrics.rouge(found, true)
    exact = metrics.accuracy([tuple(one) for one in found], [tuple(one) for one in true])
    return {"rouge1": report.rouge1, "rouge2": report.rouge2, "rougeL": report.rougeL, "rouge": report.main,
            "bleu": metrics.bleu(found, true), "exact": exact}  # fmt: skip


def _saved(folder: Path) -> dict[str, int]:
    """The lengths of a saved task; the usual ones for a model that is none, or of another task."""
    settings = read_settings(folder)
    if settings.get("task") != "seq2seq":
        return dict(_LENGTHS)
    lengths = {name: settings.get(name) for name in _LENGTHS}
    if any(isinstance(value, bool) or not isinstance(value, int) for value in lengths.values()):
        raise CheckpointError(f"{folder}: its task.json doesn't hold the settings of seq2seq.", fix="Save the task again.")
    return {name: value for name, value in lengths.items() if value is not None}
