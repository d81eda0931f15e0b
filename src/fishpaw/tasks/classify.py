"""Classify a text or a pair of texts: one label, or any number of them, from the pooled first token (arXiv:1810.04805, section 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw import metrics, switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Output
from fishpaw.data.collate import pack
from fishpaw.data.fingerprint import fingerprint
from fishpaw.data.labelled import LabelledText
from fishpaw.errors import CheckpointError, ConfigError, DataError, FishpawError
from fishpaw.losses.classification import cross_entropy, multi_label
from fishpaw.model.heads import Classifier
from fishpaw.model.transformer import Transformer
from fishpaw.switch import Spec, spec_name, spec_options
from fishpaw.tasks.encode import bar, compute, encoded, refuse_decoder, windows
from fishpaw.tasks.settings import WithSettings, read_settings
from fishpaw.tasks.training import imprint, named, seeded
from fishpaw.text.encoding import Encoding, Tokenizer, check_pairs
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.launch import leads
from fishpaw.train.loop import Result, fit
from fishpaw.train.options import Options
from fishpaw.weights.changes import gathered
from fishpaw.weights.load import inspect, tell, tokenizer_of
from fishpaw.weights.save import save

__all__ = ["Classify", "Loss", "Prediction", "Rows", "label_loss", "pairs_of"]

_log = logging.getLogger("fishpaw")
_FEW = 1000                      # texts; of fewer every character is kept
_THRESHOLD = 0.5                 # of a label's probability, where several may hold


@dataclass(frozen=True)
class Prediction:
    """The labels that hold (exactly one in a single-label task), and the probability of every label."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Feature:
    """An encoded example: ids and segments, and 0 or 1 for each label, or the index of the only one."""

    ids: list[int]
    segments: list[int]
    target: int | tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Rows:
    """A batch: texts without padding; targets [b] of indices or [b c] of zeros and ones, in the order given."""

    texts: Batch
    targets: Tensor


Loss = Callable[[nn.Module, Rows], tuple[Tensor, Tensor]]


def label_loss(model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """What `fit` minimises: cross entropy of one label a row, of several a sigmoid each; the sum and what it counts."""
    scores = model(rows.texts).classes
    return multi_label(scores, rows.targets) if rows.targets.dim() == 2 else cross_entropy(scores, rows.targets)


class Classify:
    """A Transformer with a pooler and a classifier, its tokenizer, and the longest text in tokens; longer ones are cut on the right.

    pairs: whether it was trained on pairs of texts; None: not known, and then both are read.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, max_length: int = 128, pairs: bool | None = None) -> None:
        refuse_decoder(model, "classify texts")
        if "classifier" not in model.heads:
            raise ConfigError("The model has no classifier.", fix="Make the task with Classify.load(…, labels=[…]).")
        _at_least("max_length", max_length, 4)
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = min(max_length, model.longest or max_length)
        self.pairs = pairs
        self._start = imprint(model)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        labels: Sequence[str] | None = None,
        multi_label: bool | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        seed: int = 0,
        family: str | None = None,
        mask: Spec | None = None,
        position: Spec | None = None,
        attention: Spec | None = None,
        norm: Spec | None = None,
        residual_scores: bool | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Classify:
        """A saved task, or any encoder with a new classifier for `labels` (its random start from `seed`).

        Without labels the checkpoint's own classifier is used, and also where its labels are these, in whatever order: then they keep
        their own. max_length: in tokens, by default 128 or what was saved; never beyond the model's positions. family, mask … changes:
        as of fp.load, switches to turn before training. Errors: ConfigError where there is no classifier, for labels that can't be told
        apart, and for an encoder-decoder; those of fp.load.
        """
        if labels is None and multi_label is not None:
            raise ConfigError("multi_label is given without labels.", fix="Name the labels, or leave multi_label out.")
        head = None if labels is None else _classifier(labels, bool(multi_label))
        turned = gathered(mask, position, attention, norm, None, residual_scores, None, changes)
        if "heads" in turned:
            raise ConfigError("A classifier's heads are its own.", fix="Leave heads out of changes.")
        model, found = inspect(name, changes=turned, revision=revision, family=family)
        refuse_decoder(model, "classify texts")
        tokenizer = tokenizer_of(found)
        length, pairs = _saved(found.folder, new=head is not None)
        tell(found)
        if head is None and "classifier" not in model.heads:
            raise ConfigError(f"{name} holds no classifier.",
                              fix='Train one: Classify.load(…, labels=["neg", "pos"]), then fit; or `fishpaw train classify`.')
        if head is not None and not _holds(model, head):
            with seeded(seed):
                model.set_heads([_pooler(model.config, model.mask.clock), head])
            pairs = None
        task = cls(model, tokenizer, max_length=length if max_length is None else max_length, pairs=pairs)
        if max_length is not None and task.max_length < max_length:
            _log.warning("max_length is %d, but the model has %d positions: texts are cut there", max_length, task.max_length)
        return task

    @classmethod
    def new(
        cls,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        config: ModelConfig | None = None,
        multi_label: bool = False,
        max_length: int = 128,
        least: int | None = None,
        seed: int = 0,
    ) -> Classify:
        """A small RoFormer from random values with the characters of `texts` as its vocabulary: for when there is no checkpoint.

        config: another shape; its vocabulary and heads are set here. least: times that a character must stand in the texts to be in
        the vocabulary; None: 2, of fewer than 1000 texts 1. Errors: ConfigError for labels that can't be told apart, DataError for
        texts without a character.
        """
        if isinstance(texts, str):
            raise DataError("texts is one string.", fix="Give a list of texts.")
        head = _classifier(labels, multi_label)
        vocab = characters(texts, least=least if least is not None else 1 if len(texts) < _FEW else 2)
        shape = config or small(len(vocab))
        pooler = _pooler(shape.change({"heads": ()}), switch.build("masks", shape.turns("mask")[0], shape).clock)
        shape = shape.change({"vocab_size": len(vocab), "heads": (pooler, head)})
        with seeded(seed):
            model = Transformer(shape)
        return cls(model.eval(), WordPiece(vocab), max_length=max_length)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the scores."""
        return self._head.labels

    @property
    def multi_label(self) -> bool:
        """Whether several labels may hold at once."""
        return self._head.multi_label

    def encode(self, example: LabelledText) -> Feature:
        """One example as ids, segments and target. DataError, with file and line, for a label that the model doesn't know."""
        return self._features([example])[0]

    def decode(self, scores: Tensor) -> list[Prediction]:
        """scores [b c] -> what they say of each row. FishpawError for scores that are no numbers."""
        exact = scores.cpu().double()
        if not bool(exact.isfinite().all()):
            raise FishpawError("The model's scores are not finite.", fix="Look for NaN in its weights, and compute in fp32.")
        shares = (exact.sigmoid() if self.multi_label else exact.softmax(-1)).tolist()
        return [self._prediction(row) for row in shares]

    def fit(
        self,
        train: Iterable[LabelledText],
        dev: Iterable[LabelledText] | None = None,
        *,
        loss: Loss = label_loss,
        options: Options | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        progress: bool | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> Result:
        """Train in place and keep the weights that are best on `dev` (accuracy, or micro F1 of several labels); without dev the last
        ones. loss(model, rows) -> (sum, count): another than `label_loss`, as `lambda model, rows: focal(model(rows.texts).classes,
        rows.targets)`, or one with a penalty: adversarial(label_loss, …). out: a folder for log, checkpoints and, at the end, the saved
        task in out/model; a run found there goes on, if it began with the same model, labels, loss and data. Other arguments, errors and
        signals: train.loop.fit."""
        folder = None if out is None else Path(out)
        given = list(train)
        features, pairs = self._features(given), bool(given) and given[0].pair is not None
        held_out = None if dev is None else self._features(dev, pairs=pairs)       # before the first step: a wrong label is told at once
        for name, found in (("train", features), ("dev", held_out)):
            if found is not None and not found:
                raise DataError(f"There is no example in {name}.", fix="Give at least one, with its label.")

        def evaluate(model: nn.Module) -> dict[str, float]:
            return self._measure(held_out or [], 64, progress=False)

        result = fit(
            self.model,
            features,
            loss=loss,
            collate=self._collate,
            options=options or Options(),
            out=folder,
            evaluate=evaluate if held_out else None,
            monitor="micro_f1" if self.multi_label else "accuracy",
            resume=resume,
            identity=None if folder is None else self._identity(held_out, loss),
            progress=progress,
            report=report,
        )
        self.pairs = pairs
        if folder is not None and leads():
            self.save(folder / "model")
        return result

    def evaluate(self, examples: Iterable[LabelledText], *, batch_size: int = 64, progress: bool | None = None) -> dict[str, float]:
        """accuracy (of several labels: of the whole set), micro_f1, macro_f1, loss, and what always answering with the most frequent
        label scores (single label). batch_size, progress: see predict. Errors: DataError for no example, an unknown label, or single
        texts where it was trained on pairs."""
        features = self._features(examples, pairs=self.pairs)
        if not features:
            raise DataError("There is nothing to evaluate on.", fix="Give at least one example with its label.")
        return self._measure(features, batch_size, progress=progress)

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 64, progress: bool | None = None
    ) -> list[Prediction]:
        """What the model says of each text, or pair of texts, in their order.

        batch_size: a batch holds as many tokens as so many texts of max_length, without padding. progress: a bar; None: on a terminal.
        Errors: DataError for one string instead of a list, for texts and pairs that are not equally many, or for single texts where it
        was trained on pairs, and the other way round."""
        check_pairs(texts, pairs)
        return list(self.stream(texts, pairs, batch_size=batch_size, progress=progress))

    def stream(
        self, texts: Iterable[str], pairs: Iterable[str] | None = None, *, batch_size: int = 64, progress: bool | None = False
    ) -> Iterator[Prediction]:
        """As `predict`, one by one, in constant memory: texts, which may be without end, are read a window ahead (tasks.encode.WINDOW)."""
        tokens = self._tokens(batch_size)
        with bar(texts, progress) as tell:
            for encodings in windows(texts, pairs, self.tokenizer, max_length=self.max_length):
                _check_kind(self.pairs, pairs is not None)
                yield from self.decode(compute(self.model, encodings, _classes, tokens=tokens, tell=tell))

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer and settings to a folder that `load` opens and, where it has the architecture, transformers."""
        settings = {"task": "classify", "max_length": self.max_length} | ({} if self.pairs is None else {"pairs": self.pairs})
        save(self.model, folder, WithSettings(self.tokenizer, settings))

    @property
    def _head(self) -> Classifier:
        head = self.model.heads["classifier"]
        assert isinstance(head, Classifier)
        return head

    def _features(self, examples: Iterable[LabelledText], *, pairs: bool | None = None) -> list[Feature]:
        given = list(examples)
        for index, one in enumerate(given):
            if not isinstance(one, LabelledText):
                raise DataError(f"Example {index} is a {type(one).__name__}.", fix="Give LabelledText(text, labels=(…,)) of data.labelled.")
        second = pairs_of(given)
        if given:
            _check_kind(pairs, second is not None)
        encodings = encoded(self.tokenizer, [one.text for one in given], second, max_length=self.max_length)
        return [Feature(each.ids, each.segments, self._target(one)) for each, one in zip(encodings, given, strict=True)]

    def _target(self, example: LabelledText) -> int | tuple[int, ...]:
        for label in example.labels:
            if label not in self.labels:
                raise DataError(f"{_where(example)}: unknown label {label!r}.", fix=f"The labels are {', '.join(self.labels)}.")
        if self.multi_label:
            return tuple(int(label in example.labels) for label in self.labels)
        if len(example.labels) != 1:
            raise DataError(f"{_where(example)}: {len(example.labels)} labels, where one is wanted.", fix="Give one, or use multi-label.")
        return self.labels.index(example.labels[0])

    def _collate(self, features: list[Feature]) -> Rows:
        return Rows(pack(features, segments=self.model.config.segments > 1), _targets(features))

    def _tokens(self, batch_size: int) -> int:
        _at_least("batch_size", batch_size, 1)
        return batch_size * self.max_length

    def _scores(self, features: Sequence[Feature], batch_size: int, *, progress: bool | None) -> Tensor:
        """[n c] in the order of the features."""
        encodings = [Encoding(one.ids, one.segments, [], []) for one in features]
        with bar(features, progress) as tell:
            return compute(self.model, encodings, _classes, tokens=self._tokens(batch_size), tell=tell)

    def _measure(self, features: Sequence[Feature], batch_size: int, *, progress: bool | None) -> dict[str, float]:
        scores, targets = self._scores(features, batch_size, progress=progress), _targets(features)
        predicted = [prediction.labels for prediction in self.decode(scores)]
        true = [self._names(one.target) for one in features]
        if self.multi_label:
            total, count = multi_label(scores, targets)
            report = metrics.multilabel(predicted, true, labels=self.labels)
            extra = {}
        else:
            total, count = cross_entropy(scores, targets)
            only = [labels[0] for labels in true]
            report = metrics.classification([labels[0] for labels in predicted], only, labels=self.labels)
            extra = {"majority": metrics.majority_accuracy(only)}
        loss = float(total / count)
        return {"accuracy": report.accuracy, "micro_f1": report.micro.f1, "macro_f1": report.macro_f1, "loss": loss, **extra}

    def _names(self, target: int | tuple[int, ...]) -> tuple[str, ...]:
        if isinstance(target, int):
            return (self.labels[target],)
        return tuple(label for label, holds in zip(self.labels, target, strict=True) if holds)

    def _identity(self, held_out: Sequence[Feature] | None, loss: Loss) -> dict[str, Any]:
        """What else a run depends on besides what train.loop knows of."""
        return {
            "labels": self.labels,
            "multi_label": self.multi_label,
            "max_length": self.max_length,
            **({} if loss is label_loss else {"loss": named(loss)}),
            "dev": "none" if held_out is None else fingerprint(held_out)[:16],
            "model": {**self.model.config.change({"heads": ()}).to_dict(), "starting weights": self._start},
        }

    def _prediction(self, shares: list[float]) -> Prediction:
        named = dict(zip(self.labels, shares, strict=True))
        if self.multi_label:
            return Prediction(tuple(label for label, share in named.items() if share >= _THRESHOLD), named)
        return Prediction((max(named, key=lambda label: named[label]),), named)


def small(vocab_size: int) -> ModelConfig:
    """A RoFormer that learns in minutes on a laptop: 2 layers of 128."""
    return ModelConfig(
        family="roformer",
        vocab_size=vocab_size,
        hidden_size=128,
        layers=2,
        attention_heads=4,
        intermediate_size=512,
        position="rotary",
        dropout=0.2,
    )


def pairs_of(examples: Sequence[LabelledText]) -> list[str] | None:
    """The second texts, None where there are none. Errors: DataError where some have one and others don't."""
    pairs = [one.pair for one in examples if one.pair is not None]
    if pairs and len(pairs) < len(examples):
        alone = next(one for one in examples if one.pair is None)
        raise DataError(f"{_where(alone)}: one text where others are pairs.", fix="Give every example a pair, or none.")
    return pairs or None


def _saved(folder: Path, *, new: bool) -> tuple[int, bool | None]:
    """max_length and pairs of a saved classifier. new: for another one, so that the settings of another task don't matter."""
    settings = read_settings(folder)
    length, pairs = settings.get("max_length", 128), settings.get("pairs")
    sound = isinstance(length, int) and not isinstance(length, bool) and (pairs is None or isinstance(pairs, bool))
    if not sound or (settings and settings.get("task") != "classify"):
        if new:
            return 128, None
        raise CheckpointError(f"{folder}: its task.json doesn't hold the settings of a classifier.", fix="Save the task again.")
    return length, pairs


def _check_kind(trained: bool | None, given: bool) -> None:
    kinds = ("single texts", "pairs of texts")
    if trained is not None and trained != given:
        raise DataError(f"The task was trained on {kinds[trained]}; these are {kinds[given]}.", fix=f"Give {kinds[trained]}.")


def _pooler(config: ModelConfig, clock: str) -> Spec:
    """The checkpoint's own, unless it reads a first token that sees nothing else; or as transformers has it. Of a mask that doesn't look
    ahead only the last token has read all."""
    held = next((head for head in config.heads if spec_name(head) == "pooler"), None)
    if held is not None and (clock != "causal" or spec_options(held).get("at") == "last"):
        return held
    activation = config.activation if config.family == "roformer" else "tanh"
    return {"name": "pooler", "activation": activation} | ({} if clock == "full" else {"at": "last"})


def _classifier(labels: Sequence[str], several: bool) -> dict[str, Any]:
    names = [labels] if isinstance(labels, str) else list(labels)
    if isinstance(labels, str) or not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"The labels are {labels!r}.", fix="Give a list of different names.")
    if len(names) < (1 if several else 2):
        raise ConfigError(f"The labels are {names!r}: nothing to choose from.", fix="Give at least two, or use multi-label with one.")
    return {"name": "classifier", "labels": names, "multi_label": several}


def _holds(model: Transformer, head: dict[str, Any]) -> bool:
    """Whether the model has this classifier already, the order of the labels aside."""
    held = model.heads["classifier"] if "classifier" in model.heads else None
    return isinstance(held, Classifier) and set(held.labels) == set(head["labels"]) and held.multi_label == head["multi_label"]


def _at_least(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}.", fix=f"Give a whole number, {least} or more.")


def _classes(output: Output, batch: Batch) -> Tensor:
    assert output.classes is not None
    return output.classes


def _targets(features: Sequence[Feature]) -> Tensor:
    return torch.tensor([feature.target for feature in features])


def _where(example: LabelledText) -> str:
    return f"{example.file}, line {example.line}" if example.file else f"The example {example.text[:20]!r}"
