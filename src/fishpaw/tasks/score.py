"""How probable a text is, and each token in it; which tokens look misspelt.

Three ways, and the model says which. A masked language model is asked in n passes, each token masked in turn: pseudo-log-likelihood
(arXiv:1910.14659). T-TA sees all tokens but the one that it guesses, and is asked once (arXiv:2004.08097). A causal model is asked once,
from left to right. Texts are packed by length, long ones read in overlapping windows; memory grows with neither number nor length.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fishpaw.decoding.limits import check_real, check_whole
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.encode import bar, packed
from fishpaw.tasks.training import refuse_ending
from fishpaw.text.encoding import Encoding, Tokenizer, affixes
from fishpaw.weights.load import load

__all__ = ["Alternative", "Question", "Score", "Scored", "ScoredToken", "Way", "Window", "windows"]

Way = Literal["masked", "t-ta", "causal"]
"""n passes, a token masked in each; one pass that sees all others; one pass that sees what stands before."""

LOGITS = 2**21
"""Logits that are made at a time, 8 MB in fp32: what is counted, sorted and summed in them stays in the cache."""

TOGETHER = 16
"""Batches of tokens that are sorted by length together, before the texts in them are answered."""


class Alternative(NamedTuple):
    """What the model would rather expect: a token as text, and its log-probability."""

    token: str
    log_probability: float


@dataclass(frozen=True)
class ScoredToken:
    """start, end: where it stands in the text, in characters. token: as the vocabulary spells it. log_probability: natural, None where
    there is none to give: a token that stands for any unknown text ([UNK]), a special token that is written in the text. rank: 1 for the
    most probable of the vocabulary's ordinary tokens. alternatives: the most probable other ones. suspect: looks misspelt."""

    start: int
    end: int
    token: str
    log_probability: float | None = None
    rank: int | None = None
    alternatives: tuple[Alternative, ...] = ()
    suspect: bool = False


@dataclass(frozen=True)
class Scored:
    """A text and its tokens, in order, without those that a tokenizer adds."""

    text: str
    way: Way
    tokens: tuple[ScoredToken, ...]

    @property
    def log_probabilities(self) -> tuple[float, ...]:
        """Of the tokens that have one."""
        return tuple(one.log_probability for one in self.tokens if one.log_probability is not None)

    @property
    def total(self) -> float | None:
        """Their sum: the (pseudo-)log-likelihood of the text; None where no token has a probability, as a sum of none says nothing."""
        return math.fsum(self.log_probabilities) if self.log_probabilities else None

    @property
    def mean(self) -> float | None:
        """Their mean, a token; None where no token has a probability."""
        return None if self.total is None else self.total / len(self.log_probabilities)

    @property
    def perplexity(self) -> float | None:
        """exp(-mean): 1 if the model is sure of each token, the vocabulary's size if it has no idea. None as the mean, or above 1e300."""
        return math.exp(-self.mean) if self.mean is not None and self.mean > -690 else None

    @property
    def unknown(self) -> int:
        """How many tokens have no probability."""
        return len(self.tokens) - len(self.log_probabilities)

    @property
    def suspects(self) -> tuple[ScoredToken, ...]:
        """The tokens that look misspelt."""
        return tuple(one for one in self.tokens if one.suspect)

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        tokens = [{**asdict(one), "alternatives": [each._asdict() for each in one.alternatives]} for one in self.tokens]
        return {"text": self.text, "way": self.way, "total": self.total, "mean": self.mean, "perplexity": self.perplexity,
                "unknown": self.unknown, "tokens": tokens}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A text that `Score.encode` has found can be scored, and its tokens."""

    text: str
    encoding: Encoding


class Score:
    """A model and its tokenizer. The way follows from the model: T-TA where its stream is "positions" (each token unseen by itself), causal
    where its mask is, n passes where it sees both sides.

    >>> task = Score.load("hfl/chinese-roberta-wwm-ext")
    >>> found, = task.score(["今天天汽很好"])
    >>> found.total, found.perplexity, [(one.start, one.alternatives[0].token) for one in found.suspects]

    A token is a suspect if its log-probability is more than `margin` (nats) below that of the best alternative and its rank is above
    `rank`. top: alternatives a token. max_length: tokens of a window, those that the tokenizer adds included; default what the model
    reads, and where that is any number, its config's max_positions. Causal models begin with what the tokenizer puts before a text, else
    with the token that the checkpoint begins texts with (bos_token_id), else with the one that ends them.
    Errors: ConfigError for a model that scores no tokens, an encoder-decoder, the mask unilm, a head with an ending; DataError for a
    tokenizer without the mask that n passes need.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, top: int = 5, margin: float = 8.0, rank: int = 10,
                 max_length: int | None = None) -> None:
        check_whole("top", top, 1, None)
        check_real("margin", margin, "a finite number, 0 or more", lambda value: value >= 0)
        check_whole("rank", rank, 1, None)
        if max_length is not None:
            check_whole("max_length", max_length, 1, None)
        self.model, self.tokenizer = model, tokenizer
        self.top, self.margin, self.rank = top, margin, rank
        self.way = _way(model)
        self.mask_id = tokenizer.mask_id if self.way == "masked" else None
        before, after = affixes(tokenizer)
        if self.way == "causal":                                       # what follows the text changes nothing
            before, after = before or (_start(model, tokenizer),), ()
        self.before, self.after = before, after
        length = model.reading(max_length)
        self.room = length - len(before) - len(after)
        if self.room < 1:
            what = f"max_length is {length}: no room for a token of the text beside those that the tokenizer adds."
            raise ConfigError(what, fix="Raise max_length.")
        special = [one for one in tokenizer.special_ids if one < tokenizer.size]
        self._barred = torch.zeros(tokenizer.size, dtype=torch.bool)                                          # [v]
        self._barred[special] = True
        self._spelled: dict[int, str] = {}

    @classmethod
    def load(cls, name: str | Path, *, changes: Mapping[str, Any] | None = None, top: int = 5, margin: float = 8.0, rank: int = 10,
             max_length: int | None = None) -> Score:
        """A model by its name for fp.load, with the changes of fp.load_model; the other arguments are those of the class."""
        return cls(*load(name, changes=changes), top=top, margin=margin, rank=rank, max_length=max_length)

    def score(self, texts: Iterable[str], *, tokens: int = 4096, progress: bool | None = False) -> list[Scored]:
        """Each text's score, in their order. tokens: a batch. progress: a bar; None: on a terminal. DataError for one string where a list
        belongs, and for a text without any token."""
        with bar(texts, progress) as tell:
            found = []
            for one in self.stream(texts, tokens=tokens):
                found.append(one)
                tell(1)
            return found

    def stream(self, texts: Iterable[str | Question], *, tokens: int = 4096) -> Iterator[Scored]:
        """As `score`, in constant memory. What is wrong with a text is raised when all before it are answered."""
        check_whole("tokens", tokens, 1, None)
        if isinstance(texts, str):
            raise DataError("Where a list of texts belongs stands one string.", fix="Give a list of texts.")
        waiting: deque[_Sheet] = deque()
        rows: list[_Row] = []
        filled = 0
        for question in self._questions(texts):
            if isinstance(question, FishpawError):
                yield from self._answered(waiting, rows, tokens)
                raise question
            sheet = _Sheet(question)
            waiting.append(sheet)
            for row in self._rows(sheet):
                rows.append(row)
                sheet.open += 1
                filled += len(row.ids)
                if filled >= TOGETHER * tokens:                        # a long text may fill this many times
                    yield from self._answered(waiting, rows, tokens)
                    rows, filled = [], 0
            sheet.open -= 1
        yield from self._answered(waiting, rows, tokens)

    def encode(self, text: str) -> Question:
        """A text as `stream` takes it, too. DataError for one without any token."""
        if not isinstance(text, str):
            raise DataError(f"A text is {text!r:.60}.", fix="Give a string.")
        encoding = self.tokenizer.encode(text, special=False)
        if not encoding.ids:
            raise DataError("The text has no token to score.", fix="Leave out what is blank, or only signs that nobody sees.")
        return Question(text, encoding)

    def _questions(self, texts: Iterable[str | Question]) -> Iterator[Question | FishpawError]:
        """The texts, until one can't be read or scored: then the error, which is not raised before the others are answered."""
        source = iter(texts)
        while True:
            try:
                text = next(source)
                question = text if isinstance(text, Question) else self.encode(text)
            except StopIteration:
                return
            except FishpawError as error:
                yield error
                return
            yield question

    def _rows(self, sheet: _Sheet) -> Iterator[_Row]:
        """What the model has to read for a text: in n passes a row a token, else one a window."""
        ids, skip = sheet.question.encoding.ids, self.tokenizer.special_ids
        for window in windows(len(ids), self.room, ahead=self.way != "causal"):
            laid = [*self.before, *ids[window.start : window.stop], *self.after]
            shift = len(self.before) - window.start
            asked = [at for at in range(window.first, window.last) if ids[at] not in skip]
            if self.mask_id is None:
                if asked:
                    yield _Row(sheet, laid, asked, shift - (self.way == "causal"))
                continue
            for at in asked:
                yield _Row(sheet, [*laid[: at + shift], self.mask_id, *laid[at + shift + 1 :]], [at], shift)

    def _answered(self, waiting: deque[_Sheet], rows: Sequence[_Row], tokens: int) -> Iterator[Scored]:
        """Let the model read the rows; give the texts that are done."""
        if rows:
            self._read(rows, tokens)
        while waiting and not waiting[0].open:
            yield self._scored(waiting.popleft())

    def _read(self, rows: Sequence[_Row], tokens: int) -> None:
        """Write what the model says into the sheets."""
        model, device = self.model, self.model.table.device
        head = next(model.heads[name] for name in (("mlm", "lm") if self.mask_id is not None else ("lm", "mlm")) if name in model.heads)
        none = torch.empty(0, dtype=torch.long, device=device)
        encodings = [Encoding(row.ids, [0] * len(row.ids), [], []) for row in rows]
        with torch.inference_mode(), model.evaluating():
            for chosen, batch in packed(encodings, segments=model.config.segments > 1, tokens=tokens, device=device):
                hidden = model(batch, logits_at=none).hidden                                                  # [n d]
                asked = [(rows[one], at) for one in chosen for at in rows[one].asked]
                first = {one: start for one, start in zip(chosen, batch.first.tolist(), strict=True)}
                places = [first[one] + rows[one].shift + at for one in chosen for at in rows[one].asked]
                size = max(1, LOGITS // model.config.vocab_size)
                for part in (slice(start, start + size) for start in range(0, len(asked), size)):
                    true = torch.tensor([row.sheet.question.encoding.ids[at] for row, at in asked[part]], device=device)
                    logits = head(hidden[torch.tensor(places[part], device=device)], model.table)             # [m v]
                    for (row, at), answer in zip(asked[part], self._answers(logits, true), strict=True):
                        row.sheet.answers[at] = answer
        for row in rows:
            row.sheet.open -= 1

    def _answers(self, logits: Tensor, true: Tensor) -> Iterator[_Answer]:
        """logits [m v], the ids that stand there [m] -> log-probability, rank and alternatives of each."""
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[:, : self.tokenizer.size]      # [m v]
        own = logs.gather(1, true[:, None])                                                                   # [m 1]
        if not bool(own.isfinite().all()):
            raise FishpawError("The model's scores are not finite.", fix="Look for NaN in its weights, and compute in fp32.")
        logs = logs.masked_fill(self._barred.to(logs.device), float("-inf"))
        rank = (logs > own).sum(1) + 1                                                                        # [m]
        logs = logs.scatter(1, true[:, None], float("-inf"))
        best, which = logs.topk(min(self.top, max(0, int((~self._barred).sum()) - 1)), dim=1)                 # [m top]
        return zip(own[:, 0].tolist(), rank.tolist(), best.tolist(), which.tolist(), strict=True)

    def _scored(self, sheet: _Sheet) -> Scored:
        encoding, found = sheet.question.encoding, []
        for at, (token, (start, end)) in enumerate(zip(encoding.tokens, encoding.offsets, strict=True)):
            if at not in sheet.answers:
                found.append(ScoredToken(start, end, token))
                continue
            own, rank, best, which = sheet.answers[at]
            alternatives = tuple(Alternative(self._spell(id), value) for id, value in zip(which, best, strict=True))
            suspect = bool(best) and best[0] - own > self.margin and rank > self.rank
            found.append(ScoredToken(start, end, token, own, rank, alternatives, suspect))
        return Scored(sheet.question.text, self.way, tuple(found))

    def _spell(self, id: int) -> str:
        """A token as text; as the vocabulary spells it where it is none by itself, a part of a character."""
        if id not in self._spelled:
            text = self.tokenizer.decode([id], skip_special=False)
            self._spelled[id] = self.tokenizer.tokens[id] if not text or "\ufffd" in text else text
        return self._spelled[id]


class Window(NamedTuple):
    """Tokens start … stop - 1 are read together; first … last - 1 of them are scored."""

    start: int
    stop: int
    first: int
    last: int


def windows(count: int, room: int, *, ahead: bool) -> list[Window]:
    """`count` tokens in windows of at most `room` that overlap by half. Each token is scored in the window where it sees most: with what is
    `ahead` of it seen, where the nearer end is farthest; else in the first that it is in."""
    if count <= room:
        return [Window(0, count, 0, count)]
    starts = [*range(0, count - room, max(1, room // 2)), count - room]
    cuts = [(here + room + there) // 2 if ahead else here + room for here, there in zip(starts, islice(starts, 1, None), strict=False)]
    return [Window(start, start + room, first, last) for start, first, last in zip(starts, [0, *cuts], [*cuts, count], strict=True)]


_Answer = tuple[float, int, list[float], list[int]]


class _Sheet:
    """A text on its way: answers by token, and how many of its rows are not read yet; one more until all of them are laid."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.open = 1
        self.answers: dict[int, _Answer] = {}


class _Row(NamedTuple):
    """ids that the model reads; which tokens of the text are asked for; token i's answer stands at i + shift."""

    sheet: _Sheet
    ids: list[int]
    asked: list[int]
    shift: int


def _way(model: Transformer) -> Way:
    if model.encoder is not None:
        raise ConfigError("An encoder-decoder can't score a text by itself.", fix="Load a BERT, a T-TA or a GPT; answers to a text are "
                          "compared by `fishpaw generate --choices`.")
    if not {"lm", "mlm"} & set(model.heads):
        raise ConfigError("The model has no head that scores tokens.", fix='Load a checkpoint with a head "mlm" or "lm".')
    refuse_ending(model, "the probability of a text")
    if model.config.stream == "positions":
        if not all(mask.exclude_self for mask in model.masks):
            raise ConfigError("The model sees the tokens that it is to guess.", fix='Give its mask "exclude_self": true.')
        return "t-ta"
    match model.mask.clock:
        case "full":
            return "masked"
        case "causal":
            return "causal"
    raise ConfigError("A model with the mask 'unilm' reads a text and answers it.", fix='Change its mask to "full" (n passes) or "causal".')


def _start(model: Transformer, tokenizer: Tokenizer) -> int:
    """Where nothing is put before a text: what the first token is guessed from."""
    begins = model.generation.get("bos_token_id")
    return begins if isinstance(begins, int) else tokenizer.eos_id
