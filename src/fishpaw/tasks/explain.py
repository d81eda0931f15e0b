"""Why a classifier chose a label, or a masked language model a character: what each token of the text added to its probability.

Scores are taken on the embedded tokens, on the way from a baseline to the text (arXiv:1703.01365); a token's score is the sum over its
numbers, so that all scores sum to F(text) - F(baseline). The tokens that a tokenizer adds ([CLS], [SEP]) and the [MASK] that is asked about
stand in the baseline, too: what they add for any text isn't mixed into what the text adds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fishpaw import checks
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError, DataError
from fishpaw.interpret.integrated_gradients import Attribution, Scores, integrated_gradients, summed
from fishpaw.model.heads import Classifier
from fishpaw.model.transformer import Transformer
from fishpaw.switch import nearest
from fishpaw.tasks.encode import refuse_decoder
from fishpaw.tasks.settings import read_settings
from fishpaw.text.encoding import Tokenizer
from fishpaw.weights.load import inspect, tell, tokenizer_of

__all__ = ["Baseline", "Explain", "ExplainedToken", "Explanation", "Measure", "Method", "log_odds", "masks", "padding", "probability",
           "random_texts", "zeros"]  # fmt: skip

_log = logging.getLogger("fishpaw")

Baseline = Callable[[Transformer, Tokenizer, Tensor], Tensor]
"""model, tokenizer, ids [t] -> what the text is compared with, [t e] or several, [m t e]."""

Measure = Callable[[Tensor, int, bool], Tensor]
"""scores [b c], the index of a label, whether several labels may hold -> F, [b]."""


class Method(Protocol):
    """integrated_gradients, complete_gradients, expected_gradients …, with `partial` where other arguments are wanted."""

    def __call__(self, f: Scores, x: Tensor, *, baseline: Tensor | None = None, rows: int = 8) -> Attribution: ...


@dataclass(frozen=True)
class ExplainedToken:
    """start, end: where it stands in its text, in characters; second: in the second text of a pair. token: as the vocabulary spells it.
    score: what it adds to F, negative where it takes away."""

    start: int
    end: int
    token: str
    score: float
    second: bool = False


@dataclass(frozen=True)
class Explanation:
    """What speaks for `label`: value and baseline are F (its probability) of the text and of what it is compared with; error: the sum of
    all scores - (value - baseline); points: gradients taken. Tokens in order, without those that a tokenizer adds. cut: the text was longer
    than what is read, and its rest has no score."""

    text: str
    pair: str | None
    label: str
    value: float
    baseline: float
    error: float
    points: int
    tokens: tuple[ExplainedToken, ...]
    cut: bool = False

    @property
    def relative(self) -> float:
        """|error| / |value - baseline|; infinite where F doesn't change and the scores don't sum to 0."""
        change = abs(self.value - self.baseline)
        return abs(self.error) / change if change else math.inf if self.error else 0.0

    def spans(self, *, second: bool = False) -> list[tuple[int, int, float]]:
        """Start, end and score of the tokens of a text, for interpret.colouring.pieces."""
        return [(one.start, one.end, one.score) for one in self.tokens if one.second == second]

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


class Explain:
    """A model and its tokenizer: a classifier, or a masked language model, which is asked about the [MASK] of a text.

    >>> task = Explain.load("runs/reviews/model")
    >>> found = task.explain("房间很干净，就是有点小")
    >>> found.label, [(one.token, one.score) for one in found.tokens]

    max_length: in tokens, longer texts are cut on the right; None: what the model reads, and where that is any number, its
    config's max_positions. tokens: a forward reads so many points of the line as have about so many tokens together; memory grows with
    it. pairs: whether the classifier was trained on pairs of texts; None: not known. Errors: ConfigError for a model that has neither
    head, looks only back at a [MASK], or reads an encoder.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, max_length: int | None = None, pairs: bool | None = None,
                 tokens: int = 1024) -> None:
        refuse_decoder(model, "be explained")
        checks.whole("max_length", max_length, least=4, optional=True)
        checks.whole("tokens", tokens, least=1)
        head = model.heads["classifier"] if "classifier" in model.heads else None
        if head is None and ("mlm" not in model.heads or model.mask.clock != "full"):
            fix = "Load a classifier, or a BERT or RoFormer as it is, which is asked about a [MASK]."
            raise ConfigError("The model has no classifier, and no head mlm with a full mask.", fix=fix)
        self.model, self.tokenizer, self.pairs, self.tokens = model, tokenizer, pairs, tokens
        self.head = head if isinstance(head, Classifier) else None
        self.max_length = model.reading(max_length)

    @classmethod
    def load(cls, name: str | Path, *, changes: Mapping[str, Any] | None = None, max_length: int | None = None) -> Explain:
        """A model by its name for fp.load, with the changes of fp.load_model. max_length: None for what a saved task says."""
        model, found = inspect(name, changes=changes)
        tokenizer = tokenizer_of(found)
        tell(found)
        saved = read_settings(found.folder)
        pairs = saved.get("pairs")
        task = cls(model, tokenizer, max_length=saved.get("max_length") if max_length is None else max_length,
                   pairs=pairs if isinstance(pairs, bool) else None)
        if max_length is not None and task.max_length < max_length:
            _log.warning("max_length is %d, but the model has %d positions: texts are cut there", max_length, task.max_length)
        return task

    @property
    def labels(self) -> tuple[str, ...]:
        """What may be asked for: the classifier's labels, or the tokens of the vocabulary."""
        return self.tokenizer.tokens[: self.tokenizer.size] if self.head is None else self.head.labels

    def explain(
        self,
        text: str,
        pair: str | None = None,
        *,
        label: str | None = None,
        method: Method = integrated_gradients,
        baseline: Baseline | None = None,
        measure: Measure | None = None,
        reduce: Callable[[Tensor], Tensor] = summed,
    ) -> Explanation:
        """What each token adds to F, the score of `label` (None: the likeliest one).

        method, baseline (None: zeros), measure (None: probability), reduce (values [t e] -> [t], summed or normed): functions; see docs.
        Errors: ConfigError for a label that there isn't, and for a model packed by prepare(), which has no gradients; DataError for a
        text without a token, for a pair where single texts were trained on (and the other way round), and where a masked language model
        finds no [MASK] or several.
        """
        if self.pairs not in (None, pair is not None):
            raise DataError(f"The task was trained on {'pairs of' if self.pairs else 'single'} texts; this is another kind.",
                            fix=f"Give {'a pair' if self.pairs else 'one text'}.")
        if self.model.compute is not None:
            raise ConfigError("The model is packed for inference, without gradients.", fix="Explain before prepare().")
        encoding = self.tokenizer.encode(text, pair, max_length=self.max_length)
        cut = len(encoding) == self.max_length < len(self.tokenizer.encode(text, pair))
        special = self.tokenizer.special_ids
        asked = self._asked(encoding.ids, cut)
        fixed = [at == asked or id in special and encoding.offsets[at] == (0, 0) for at, id in enumerate(encoding.ids)]
        if all(fixed):
            raise DataError("The text has no token to explain.", fix="Leave out what is blank, or only signs that nobody sees.")
        with torch.inference_mode(False), self.model.evaluating(), _frozen(self.model):
            ids = torch.tensor(encoding.ids, device=self.model.table.device)                                  # [t]
            scores = self._scores(ids, encoding.segments, asked)
            x = self.model.table[ids].float()                                                                 # [t e]
            index = self._index(label, scores, x)
            start = (baseline or zeros)(self.model, self.tokenizer, ids).to(x)                                # [t e] or [m t e]
            start = torch.where(torch.tensor(fixed, device=x.device)[:, None], x, start)
            several, value = self.head is not None and self.head.multi_label, measure or probability

            def f(embedded: Tensor) -> Tensor:
                return value(scores(embedded), index, several)

            found = method(f, x, baseline=start, rows=max(1, self.tokens // len(ids)))
        each = reduce(found.values).tolist()
        told = tuple(
            ExplainedToken(*encoding.offsets[at], encoding.tokens[at], each[at], pair is not None and encoding.segments[at] == 1)
            for at in range(len(ids)) if not fixed[at]
        )  # fmt: skip
        return Explanation(text, pair, self.labels[index], found.at_input, found.at_baseline, found.error, found.points, told, cut)

    def _asked(self, ids: list[int], cut: bool) -> int | None:
        """Where the [MASK] is that a masked language model is asked about."""
        if self.head is not None:
            return None
        places = [at for at, id in enumerate(ids) if id == self.tokenizer.mask_id]
        if len(places) != 1:
            mask = self.tokenizer.tokens[self.tokenizer.mask_id]
            within = f" among the {self.max_length} tokens that are read" if cut else ""
            raise DataError(f"The text has {len(places) or 'no'} {mask}{within}.", fix=f"Write one {mask}, where a token is asked about.")
        return places[0]

    def _scores(self, ids: Tensor, segments: list[int], asked: int | None) -> Scores:
        """Embedded tokens [b t e] -> a score for each label, fp32 [b c]."""
        dtype, t = self.model.table.dtype, len(ids)
        kinds = torch.tensor(segments, device=ids.device) if self.model.config.segments > 1 else None
        batches: dict[int, Batch] = {}

        def scores(embedded: Tensor) -> Tensor:
            b = len(embedded)
            if b not in batches:
                batches[b] = Batch.padded(ids.expand(b, t), segments=None if kinds is None else kinds.expand(b, t))
            at = torch.arange(b if asked is not None else 0, device=ids.device) * t + (asked or 0)
            output = self.model(batches[b], embedded=embedded.to(dtype).flatten(0, 1), logits_at=at)
            made: Tensor = output.classes if asked is None else output.logits[:, : self.tokenizer.size]
            return made.float()

        return scores

    def _index(self, label: str | None, scores: Scores, x: Tensor) -> int:
        if label is None:
            with torch.no_grad():
                return int(scores(x[None]).argmax())
        if label not in self.labels:
            fix = nearest(label, list(self.labels)) if self.head is not None else "Give a token as the vocabulary spells it."
            raise ConfigError(f"There is no label {label!r}.", fix=fix)
        return self.labels.index(label)


def probability(scores: Tensor, label: int, several: bool) -> Tensor:
    """The probability of a label among all, [b]; where several may hold, that it does."""
    return scores[:, label].sigmoid() if several else scores.softmax(-1)[:, label]


def log_odds(scores: Tensor, label: int, several: bool) -> Tensor:
    """log p / (1 - p), [b]: where p is nearly 1 whatever is changed, it still tells differences."""
    if several:
        return scores[:, label]
    others = torch.cat([scores[:, :label], scores[:, label + 1 :]], 1)
    return scores[:, label] - others.logsumexp(-1)


def zeros(model: Transformer, tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """A vector of zeros in the place of each token, [t e]: the mean of a table that starts at random, no token."""
    return model.table.new_zeros(len(ids), model.config.embedding)


def padding(model: Transformer, tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """[PAD] in the place of each token, [t e]: a model that never looks at it has hardly trained its vector."""
    return model.table[torch.full_like(ids, tokenizer.pad_id)].detach()


def masks(model: Transformer, tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """[MASK] in the place of each token, [t e]: "unknown", to a model that was pretrained with it. DataError without a mask."""
    return model.table[torch.full_like(ids, tokenizer.mask_id)].detach()


def random_texts(model: Transformer, tokenizer: Tokenizer, ids: Tensor, *, count: int = 16, seed: int = 0) -> Tensor:
    """`count` texts of ordinary tokens, each as likely as any other, [m t e]: for expected_gradients, which averages over them."""
    checks.whole("count", count, least=1)
    ordinary = torch.tensor([id for id in range(tokenizer.size) if id not in tokenizer.special_ids])
    draw = torch.Generator().manual_seed(seed)
    chosen = ordinary[torch.randint(len(ordinary), (count, len(ids)), generator=draw)]
    return functional.embedding(chosen.to(ids.device), model.table.detach())


@contextmanager
def _frozen(model: Transformer) -> Iterator[None]:
    """No gradients for weights inside: nothing is kept for them, and nothing computed."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
