"""Classify a text or a pair of texts: one label, or any number of them, from the pooled first token (arXiv:1810.04805, section 4.1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw import hub, metrics
from fishpaw.config import ModelConfig
from fishpaw.data.collate import Padded, pad
from fishpaw.data.labelled import LabelledText
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.losses.classification import cross_entropy, multi_label
from fishpaw.model.heads import Classifier
from fishpaw.model.transformer import Transformer
from fishpaw.switch import spec_name
from fishpaw.text.encoding import Encoding, Tokenizer
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.loop import Result, fit
from fishpaw.train.options import Options
from fishpaw.weights.load import load
from fishpaw.weights.save import save

__all__ = ["Classify", "Prediction"]

_SETTINGS = "task.json"
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
    """A batch: padded texts; targets [b] of indices or [b c] of zeros and ones."""

    texts: Padded
    targets: Tensor


class Classify:
    """A Transformer with a pooler and a classifier, its tokenizer, and the longest text in tokens; longer ones are cut on the right."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, max_length: int = 128) -> None:
        if "classifier" not in model.heads:
            raise ConfigError("The model has no classifier.", fix="Make the task with Classify.load(…, labels=[…]).")
        if max_length < 4:
            raise ConfigError(f"max_length is {max_length}.", fix="Give at least 4 tokens.")
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = min(max_length, getattr(model.position, "length", max_length))

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
    ) -> Classify:
        """A saved task, or any encoder with a new classifier for `labels` (its random start from `seed`).

        Without labels the checkpoint's own classifier is used. Errors: ConfigError where it has none; those of fp.load.
        """
        model, tokenizer = load(name, revision=revision)
        settings = _read_settings(hub.find(name, revision=revision).folder)
        length = max_length if max_length is not None else settings.get("max_length", 128)
        if labels is not None:
            heads = [*_poolers(model), _classifier(labels, bool(multi_label))]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model.set_heads(heads)
        elif "classifier" not in model.heads:
            raise ConfigError(f"{name} holds no classifier.", fix='Name the labels: Classify.load(…, labels=["neg", "pos"]).')
        return cls(model, tokenizer, max_length=length)

    @classmethod
    def new(
        cls,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        config: ModelConfig | None = None,
        multi_label: bool = False,
        max_length: int = 128,
        least: int = 2,
        seed: int = 0,
    ) -> Classify:
        """A small RoFormer from random values with the characters of `texts` as its vocabulary: for when there is no checkpoint.

        config: another shape; its vocabulary, heads and segments are set here. least: times that a character must stand in the texts.
        """
        vocab = characters(texts, least=least)
        shape = config or small(len(vocab))
        pooler = {"name": "pooler", "activation": shape.activation if shape.family == "roformer" else "tanh"}
        shape = shape.change({"vocab_size": len(vocab), "heads": (pooler, _classifier(labels, multi_label))})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
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
        encoding = self.tokenizer.encode(example.text, example.pair, max_length=self.max_length)
        return Feature(encoding.ids, encoding.segments, self._target(example))

    def decode(self, scores: Tensor) -> list[Prediction]:
        """scores [b c] -> what they say of each row."""
        shares = (scores.double().sigmoid() if self.multi_label else scores.double().softmax(-1)).tolist()
        return [self._prediction(row) for row in shares]

    def fit(
        self,
        train: Sequence[LabelledText],
        dev: Sequence[LabelledText] | None = None,
        *,
        options: Options | None = None,
        out: Path | None = None,
        resume: bool = True,
        progress: bool | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> Result:
        """Train in place and keep the weights that are best on `dev` (accuracy, or micro F1 of several labels); without dev the last
        ones. out: a folder for log, checkpoints and, at the end, the saved task in out/model; a run found there goes on. Other
        arguments, errors and signals: train.loop.fit."""
        features = self._features(train)
        held_out = list(dev) if dev else None

        def loss(model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
            scores = model(rows.texts.ids, segments=self._segments(rows.texts), padding=rows.texts.keep).classes
            if self.multi_label:
                total, count = multi_label(scores, rows.targets)
            else:
                total, count = cross_entropy(scores, rows.targets)
            return total, count

        def evaluate(model: nn.Module) -> dict[str, float]:
            return self.evaluate(held_out or ())

        result = fit(
            self.model,
            features,
            loss=loss,
            collate=self._collate,
            options=options or Options(),
            out=out,
            evaluate=evaluate if held_out else None,
            monitor="micro_f1" if self.multi_label else "accuracy",
            resume=resume,
            progress=progress,
            report=report,
        )
        if out is not None:
            self.save(out / "model")
        return result

    def evaluate(self, examples: Sequence[LabelledText], *, batch_size: int = 64) -> dict[str, float]:
        """accuracy (of several labels: of the whole set), micro_f1, macro_f1, loss, and what always answering with the most frequent
        label scores (single label). Errors: DataError for no example or an unknown label."""
        if not examples:
            raise DataError("There is nothing to evaluate on.", fix="Give at least one example with its label.")
        features = self._features(examples)
        scores = self._scores([Encoding(one.ids, one.segments, [], []) for one in features], batch_size)
        targets = _targets(features).to(scores.device)
        predicted = [prediction.labels for prediction in self.decode(scores)]
        if self.multi_label:
            total, count = multi_label(scores, targets)
            report = metrics.multilabel(predicted, [one.labels for one in examples], labels=self.labels)
            extra = {}
        else:
            total, count = cross_entropy(scores, targets)
            true = [one.labels[0] for one in examples]
            report = metrics.classification([labels[0] for labels in predicted], true, labels=self.labels)
            extra = {"majority": metrics.majority_accuracy(true)}
        return {
            "accuracy": report.accuracy,
            "micro_f1": report.micro.f1,
            "macro_f1": report.macro_f1,
            "loss": float(total / count),
            **extra,
        }

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 64) -> list[Prediction]:
        """What the model says of each text, or pair of texts, in their order."""
        encodings = self.tokenizer.encode_batch(list(texts), None if pairs is None else list(pairs), max_length=self.max_length)
        return self.decode(self._scores(encodings, batch_size)) if encodings else []

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer and settings to a folder that `load` opens and, where it has the architecture, transformers."""
        save(self.model, folder, _WithSettings(self.tokenizer, {"task": "classify", "max_length": self.max_length}))

    @property
    def _head(self) -> Classifier:
        head = self.model.heads["classifier"]
        assert isinstance(head, Classifier)
        return head

    def _features(self, examples: Sequence[LabelledText]) -> list[Feature]:
        paired = [one for one in examples if one.pair is not None]
        if paired and len(paired) < len(examples):
            alone = next(one for one in examples if one.pair is None)
            raise DataError(f"{_where(alone)}: one text where others are pairs.", fix="Give every example a pair, or none.")
        texts, pairs = [one.text for one in examples], [one.pair or "" for one in examples] if paired else None
        encodings = self.tokenizer.encode_batch(texts, pairs, max_length=self.max_length)
        return [Feature(each.ids, each.segments, self._target(one)) for each, one in zip(encodings, examples, strict=True)]

    def _target(self, example: LabelledText) -> int | tuple[int, ...]:
        for label in example.labels:
            if label not in self.labels:
                raise DataError(f"{_where(example)}: unknown label {label!r}.", fix=f"The labels are {', '.join(self.labels)}.")
        if self.multi_label:
            return tuple(int(label in example.labels) for label in self.labels)
        if len(example.labels) != 1:
            raise DataError(f"{_where(example)}: {len(example.labels)} labels, where one is wanted.", fix="Give one, or use multi_label.")
        return self.labels.index(example.labels[0])

    def _collate(self, features: list[Feature]) -> Rows:
        return Rows(pad(features, fill=self.model.config.pad_id), _targets(features))

    def _segments(self, texts: Padded) -> Tensor | None:
        return texts.segments if self.model.config.segments > 1 else None

    def _scores(self, encodings: Sequence[Encoding], batch_size: int) -> Tensor:
        """Scores [n c] in the order of the texts, computed in order of length: rows of similar length waste no padding."""
        training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        order = sorted(range(len(encodings)), key=lambda index: len(encodings[index].ids))
        pieces = []
        with torch.inference_mode():
            for chosen in _cut(order, batch_size):
                texts = pad([encodings[index] for index in chosen], fill=self.model.config.pad_id)
                keep = None if texts.keep is None else texts.keep.to(device)
                segments = self._segments(texts)
                out = self.model(texts.ids.to(device), segments=None if segments is None else segments.to(device), padding=keep)
                pieces.append(out.classes.float())
        self.model.train(training)
        scores = torch.cat(pieces)
        back = torch.empty(len(order), dtype=torch.long, device=device)
        back[torch.tensor(order, device=device)] = torch.arange(len(order), device=device)
        return scores[back]

    def _prediction(self, shares: list[float]) -> Prediction:
        named = dict(zip(self.labels, shares, strict=True))
        if self.multi_label:
            return Prediction(tuple(label for label, share in named.items() if share >= _THRESHOLD), named)
        return Prediction((max(named, key=lambda label: named[label]),), named)


def small(vocab_size: int) -> ModelConfig:
    """A RoFormer that learns in minutes on a laptop: 4 layers of 256."""
    return ModelConfig(
        family="roformer",
        vocab_size=vocab_size,
        hidden_size=256,
        layers=4,
        attention_heads=4,
        intermediate_size=1024,
        position="rotary",
        max_positions=512,
        norm={"name": "layer", "eps": 1e-12},
    )


@dataclass(frozen=True)
class _WithSettings:
    """A tokenizer that leaves the task's settings beside its own files."""

    tokenizer: Tokenizer
    settings: dict[str, Any]

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        (folder / _SETTINGS).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    if not path.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: invalid JSON ({error}).", fix="Save the task again.") from None
    length = settings.get("max_length", 128) if isinstance(settings, dict) else None
    if isinstance(length, bool) or not isinstance(length, int) or settings.get("task") != "classify":
        raise CheckpointError(f"{path}: these are not the settings of a classifier.", fix="Save the task again.")
    return settings


def _poolers(model: Transformer) -> list[Any]:
    held = [head for head in model.config.heads if spec_name(head) == "pooler"]
    if held:
        return held
    activation = model.config.activation if model.config.family == "roformer" else "tanh"
    at = "last" if model.mask.clock == "causal" else "first"
    return [{"name": "pooler", "activation": activation} | ({"at": at} if at == "last" else {})]


def _classifier(labels: Sequence[str], several: bool) -> dict[str, Any]:
    return {"name": "classifier", "labels": list(labels), "multi_label": several}


def _targets(features: Sequence[Feature]) -> Tensor:
    return torch.tensor([feature.target for feature in features])


def _where(example: LabelledText) -> str:
    return f"{example.file}, line {example.line}" if example.file else f"The example {example.text[:20]!r}"


def _cut(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
