"""Which training examples pushed a classifier's prediction: TracIn over checkpoints of its training. arXiv:2002.08484.

What is asked about is the log-odds of a label, log p / (1 - p): where several may hold, its logit. The training is Adam without momentum,
decay and dropout, because its step is then a sum over the examples of the batch: of their gradients times 1 / (sqrt v + eps), whose mean
over each segment of steps is kept beside the weights in the segment's middle. What this sum leaves unexplained is part of each answer: it
falls with the rate, and with more checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw import checks
from fishpaw.data.collate import move, pack
from fishpaw.data.fingerprint import fingerprint
from fishpaw.data.labelled import LabelledText
from fishpaw.data.order import Order
from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.files import folder_atomic, recover, verify_manifest, write_atomic
from fishpaw.interpret.tracin import Checkpoint, tracin
from fishpaw.optim.parameters import trainable
from fishpaw.optim.schedules import linear
from fishpaw.switch import nearest
from fishpaw.tasks.classify import Classify, Feature, Rows, label_loss
from fishpaw.tasks.encode import encoded
from fishpaw.tasks.training import imprint
from fishpaw.text.encoding import Encoding, check_pairs
from fishpaw.train.checkpoint import weights
from fishpaw.weights.safetensors import Safetensors, write_safetensors

__all__ = ["Answer", "Influence", "Pushed", "by_examples"]

_RECORD = "record.json"
_BETA, _EPSILON = 0.95, 1e-8


@dataclass(frozen=True)
class Pushed:
    """A training example, by its number, and what it added to the log-odds of the label that is asked about."""

    index: int
    text: str
    pair: str | None
    labels: tuple[str, ...]
    contribution: float


@dataclass(frozen=True)
class Answer:
    """What pushed the log-odds of `label` for a text.

    end: the log-odds; start: before training; None without checkpoints. examples: by the size of their contribution, the largest first;
    above 0 they spoke for the label. total: the sum of the contributions of all examples; size: that of their absolute values, most of
    which cancel; error: end - start - total, None without checkpoints. Where it isn't far below size, train at a smaller rate or keep more.
    """

    text: str
    pair: str | None
    label: str
    start: float | None
    end: float
    examples: tuple[Pushed, ...]
    total: float
    size: float
    error: float | None


class Influence:
    """A classifier and its training examples; checkpoints: the folder that `fit` wrote, None: the trained weights alone.

    Without checkpoints a contribution is what a step of gradient descent on this example alone would add, divided by its rate. Examples
    that were learned by heart have hardly a gradient left then, and those that weren't stand in front. Errors: DataError for other examples
    than those of the training, CheckpointError for checkpoints of another model, or damaged ones.
    """

    def __init__(self, task: Classify, train: Iterable[LabelledText], *, checkpoints: str | Path | None = None) -> None:
        self.task, self.train = task, list(train)
        self._features = _features(task, self.train)
        self._folder = None if checkpoints is None else Path(checkpoints)
        if self._folder is not None:
            record = _read(self._folder)
            if record["digest"] != fingerprint(self._features):
                count = len(self.train)
                what = f"on {record['examples']} examples, not {count}" if record["examples"] != count else (
                    f"on {count} others, or on these in another order, or read by another model's tokenizer")
                raise DataError(f"{self._folder}: of a training {what}.",
                                fix="Give the same examples in the same order, and the model that was saved beside it.")  # fmt: skip
            if record["end"] != imprint(task.model):
                what = f"{self._folder}: of a training that ended with other weights."
                raise CheckpointError(what, fix="Load the model that was saved beside it.")

    @classmethod
    def fit(
        cls, task: Classify, train: Iterable[LabelledText], out: str | Path, *, steps: int = 400, batch_size: int = 16,
        learning_rate: float = 4e-4, warmup: float = 0.1, clip: float = 1.0, checkpoints: int = 20, seed: int = 0,
        tell: Callable[[int, float], object] = lambda step, loss: None,
    ) -> Influence:  # fmt: skip
        """Train `task` in place on label_loss; then out/model is the saved task, and out/path holds its checkpoints.

        checkpoints: how many segments the steps are divided into; each takes the model's size twice on the disk. learning_rate: its peak;
        small, for the sake of the sum: where a step is large, the gradient before it doesn't tell what it does. warmup: see Options.
        tell(step, loss): a step is done. Nothing is written if it ends early. Errors: DataError for no example and for a label that the
        task doesn't know; ConfigError for numbers out of range.
        """
        checks.whole("steps", steps, least=1)
        checks.whole("checkpoints", checkpoints, least=1, most=steps)
        checks.number("learning_rate", learning_rate)
        checks.number("clip", clip)
        given = list(train)
        features = _features(task, given)
        model, folder = task.model.eval(), Path(out)
        order = Order([len(one) for one in features], batch_size=batch_size, seed=seed)
        factor = linear(steps, warmup=warmup)
        path = _Path(task, features, order)
        with folder_atomic(folder / "path") as new:
            path.write(new / f"{0:05d}.safetensors", whole=False)
            for number in range(checkpoints):
                begin, end = (steps * at // checkpoints for at in (number, number + 1))
                path.begin()
                for step in range(begin, end):
                    if step == (begin + end) // 2:
                        path.keep()
                    loss = path.step(rate=learning_rate * factor(step), clip=clip)
                    tell(step + 1, loss)
                path.write(new / f"{number + 1:05d}.safetensors", whole=True)
            path.begin()
            path.keep()
            path.write(new / f"{checkpoints + 1:05d}.safetensors", whole=False)
            record = {"format": 1, "examples": len(features), "digest": fingerprint(features), "end": imprint(model), "steps": steps}
            write_atomic(new / _RECORD, json.dumps(record, indent=1) + "\n")
        task.pairs = given[0].pair is not None
        task.save(folder / "model")
        return cls(task, given, checkpoints=folder / "path")

    @property
    def work(self) -> int:
        """How many examples `of` tells of, all in all: each at each checkpoint that stands for a segment, or once."""
        segments = 1 if self._folder is None else len([*self._folder.glob("*.safetensors")]) - 2
        return segments * len(self.train)

    def of(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, labels: Sequence[str] | None = None, top: int | None = None,
        parameters: Sequence[str] | None = None, tell: Callable[[int], object] = lambda count: None,
    ) -> list[Answer]:  # fmt: skip
        """What pushed the prediction for each text, or pair of texts.

        labels: which to ask about, one a text; None: the most probable. top: keep so many examples; None: all. parameters: parts of names,
        of a large model ("heads", "layers.11"), whose gradients alone are looked at; then the error isn't small. tell(n): of the training
        examples n more are done at a checkpoint. Cost: a forward and backward an example and checkpoint. Errors: ConfigError for an unknown
        label, those of Classify.predict.
        """
        checks.whole("top", top, least=1, optional=True)
        check_pairs(texts, pairs)
        said = self.task.predict(texts, pairs, progress=False)
        chosen = [max(one.probabilities, key=lambda label: one.probabilities[label]) for one in said] if labels is None else list(labels)
        for label in chosen:
            if label not in self.task.labels:
                raise ConfigError(f"There is no label {label!r}.", fix=nearest(label, list(self.task.labels)))
        if len(chosen) != len(texts):
            raise ConfigError(f"{len(chosen)} labels for {len(texts)} texts.", fix="Give one a text.")
        if not texts:
            return []
        several, segments = self.task.multi_label, self.task.model.config.segments > 1
        device = next(self.task.model.parameters()).device

        def read(model: nn.Module, one: tuple[Encoding, int]) -> Tensor:
            scores = model(pack([one[0]], segments=segments).to(device)).classes[0].float()                # [c]
            others = torch.cat([scores[: one[1]], scores[one[1] + 1 :]])
            odds: Tensor = scores[one[1]] if several else scores[one[1]] - others.logsumexp(0)
            return odds

        def loss(model: nn.Module, feature: Feature) -> Tensor:
            return label_loss(model, move(_rows(self.task, [feature]), device))[0]

        encodings = encoded(self.task.tokenizer, texts, pairs, max_length=self.task.max_length)
        watched = [(encoding, self.task.labels.index(label)) for encoding, label in zip(encodings, chosen, strict=True)]
        found = tracin(
            self.task.model, self._checkpoints(), self._features, watched, loss=loss, read=read, parameters=parameters, tell=tell)
        answers = []
        for at, (text, label) in enumerate(zip(texts, chosen, strict=True)):
            ranked = sorted(found.ranked(at), key=lambda one: -abs(one[1]))
            examples = tuple(self._pushed(index, value) for index, value in ranked[:top])
            known = self._folder is not None
            answers.append(Answer(
                text, pairs[at] if pairs else None, label, float(found.start[at, 0]) if known else None, float(found.end[at, 0]), examples,
                float(found.each[at].sum()), float(found.each[at].abs().sum()), float(found.error[at, 0]) if known else None,
            ))  # fmt: skip
        return answers

    def _pushed(self, index: int, contribution: float) -> Pushed:
        one = self.train[index]
        return Pushed(index, one.text, one.pair, one.labels, contribution)

    def _checkpoints(self) -> Iterator[Checkpoint]:
        if self._folder is None:
            yield Checkpoint({}, torch.ones(len(self._features)))
            return
        for path in sorted(self._folder.glob("*.safetensors")):
            file = Safetensors(path)
            parts: dict[str, dict[str, Tensor]] = {"weights": {}, "scale": {}}
            for name in file:
                kind, _, rest = name.partition("/")
                if kind in parts:
                    parts[kind][rest] = file[name]
            yield Checkpoint(parts["weights"], file["exposure"], parts["scale"] or None)


def by_examples(
    task: str | Path | Classify, train: Iterable[LabelledText], texts: Sequence[str], pairs: Sequence[str] | None = None, *,
    checkpoints: str | Path | None = None, top: int = 5, labels: Sequence[str] | None = None, parameters: Sequence[str] | None = None,
    tell: Callable[[int], object] = lambda count: None,
) -> list[Answer]:  # fmt: skip
    """The `top` training examples that pushed the prediction for each text most, for its label or against it.

    task: a classifier or the folder of one. train: all that it was trained on, in order. checkpoints: out/path of Influence.fit; None:
    the trained weights alone, see Influence. Other arguments and errors: Influence.of, Classify.load.
    """
    loaded = task if isinstance(task, Classify) else Classify.load(task)
    return Influence(loaded, train, checkpoints=checkpoints).of(texts, pairs, labels=labels, top=top, parameters=parameters, tell=tell)


class _Path:
    """Steps of Adam without momentum, theta <- theta - rate g / (sqrt v + eps), and what is to be known of those of a segment.

    v, the moving average of g^2, begins with the mean over one pass: from 0 the scale of the first steps would be wild. It looks back 20
    steps only, so that the model goes at an even pace: after a v that is still small, steps leap when gradients grow, and no sum follows.
    """

    def __init__(self, task: Classify, features: Sequence[Feature], order: Order) -> None:
        self.task, self.features, self.order = task, features, order
        self.named = dict(trainable(task.model))
        self.exposure = torch.zeros(len(features), dtype=torch.float64)
        self.squares = {name: torch.zeros_like(p) for name, p in self.named.items()}
        passed = order.count(0)
        for chosen in order.batches(0):
            for name, gradient in self._pull(chosen.tolist())[0].items():
                self.squares[name] += gradient.square() / passed
        self.begin()
        self.keep()

    def begin(self) -> None:
        """A new segment."""
        self.exposure.zero_()
        self.rates = 0.0
        self.sums = {name: torch.zeros_like(p) for name, p in self.named.items()}

    def keep(self) -> None:
        """The weights now are those of the segment."""
        self.kept = {name: tensor.clone() for name, tensor in weights(self.task.model).items()}

    @torch.no_grad()
    def step(self, *, rate: float, clip: float) -> float:
        """One update; the mean loss before it."""
        chosen = self.order.take(1)[0].tolist()
        gradients, count, mean = self._pull(chosen)
        norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
        part = min(1.0, clip / (norm + 1e-6))
        self.exposure[chosen] += rate * part / count                 # an example is once in a batch
        self.rates += rate
        for name, gradient in gradients.items():
            square = self.squares[name].mul_(_BETA).addcmul_(gradient, gradient, value=(1 - _BETA) * part**2)
            scale = 1 / (square.sqrt() + _EPSILON)
            self.named[name].sub_(rate * part * scale * gradient)
            self.sums[name] += rate * scale
        return mean

    @torch.enable_grad()
    def _pull(self, chosen: list[int]) -> tuple[dict[str, Tensor], float, float]:
        """The gradients of the mean loss of a batch, what it is a mean over, and the loss."""
        device = next(iter(self.named.values())).device
        total, count = label_loss(self.task.model, move(_rows(self.task, [self.features[index] for index in chosen]), device))
        found = torch.autograd.grad(total / count, list(self.named.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(self.named, found, strict=True) if gradient is not None}
        return gradients, float(count), float(total.detach() / count)

    def write(self, path: Path, *, whole: bool) -> None:
        """The segment; not whole: the weights alone."""
        tensors = {"exposure": self.exposure, **{f"weights/{name}": tensor for name, tensor in self.kept.items()}}
        if whole:
            tensors |= {f"scale/{name}": total / self.rates for name, total in self.sums.items()}
        write_safetensors(tensors, path)


def _features(task: Classify, train: Sequence[LabelledText]) -> list[Feature]:
    if not train:
        raise DataError("There is no training example.", fix="Give at least one, with its label.")
    return [task.encode(one) for one in train]


def _rows(task: Classify, features: Sequence[Feature]) -> Rows:
    return Rows(pack(features, segments=task.model.config.segments > 1), torch.tensor([one.target for one in features]))


def _read(folder: Path) -> dict[str, Any]:
    recover(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder.", fix="Name the folder `path` that the training wrote.")
    if not (folder / _RECORD).exists():
        inner = folder / "path"
        if (inner / _RECORD).exists():
            raise CheckpointError(f"{folder}: the folder around the checkpoints.", fix=f"Give {inner}.")
        raise CheckpointError(f"{folder}: no record of a training.", fix="Name the folder `path` that the training wrote.")
    verify_manifest(folder)
    path = folder / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no record of a training ({error}).", fix="Name the folder that Influence.fit wrote.") from error
    if not isinstance(record, dict) or record.get("format") != 1 or not record.keys() >= {"examples", "digest", "end"}:
        raise CheckpointError(f"{path}: no record of a training.", fix="Name the folder that Influence.fit wrote.")
    return record
