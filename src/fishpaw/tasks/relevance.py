"""Does a model tell the reply that was given from one that was given elsewhere? Area under the ROC curve of its scores, 0.5: chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fishpaw import metrics
from fishpaw.data.conversations import Conversation
from fishpaw.decoding.limits import check_whole
from fishpaw.errors import DataError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.turns import Layout, log_probabilities

__all__ = ["Choice", "choices", "relevance"]


@dataclass(frozen=True)
class Choice:
    """A history, the turn that followed, and a reply out of another conversation."""

    history: tuple[str, ...]
    true: str
    strange: str


def choices(conversations: Sequence[Conversation], *, samples: int, seed: int) -> list[Choice]:
    """`samples` replies of the conversations (all, if they are fewer), drawn by `seed`, each with a strange one. DataError where all are of
    one conversation."""
    check_whole("samples", samples, 1, None)
    places = [(one, place) for one, each in enumerate(conversations) for place in range(1, len(each.turns))]
    if len({one for one, _ in places}) < 2:
        raise DataError("Replies can't be compared: they are of one conversation.", fix="Give at least two conversations with replies.")
    chance = random.Random(seed)
    found = []
    for one, place in chance.sample(places, min(samples, len(places))):
        other = one
        while other == one:
            other, strange = chance.choice(places)
        turns = conversations[one].turns
        found.append(Choice(turns[:place], turns[place], conversations[other].turns[strange]))
    return found


def relevance(model: Transformer, layout: Layout, found: Sequence[Choice], *, max_length: int) -> tuple[float, float]:
    """AUC of the true turns' scores against the strange ones', by two scores: mean log p(turn | history) a token; and that less the same
    as an answer to a turn without words: pointwise mutual information, which doesn't prefer what is probable anywhere."""
    by_probability, by_information = [], []
    for turns in ([one.true for one in found], [one.strange for one in found]):
        given, alone = [], []
        for one, turn in zip(found, layout.turns(turns), strict=True):
            whole = [*layout.turns(one.history), turn]
            given.append(layout.latest(whole, max_length))
            alone.append(layout.alone(whole, len(whole) - 1, max_length))
        with_history, without = ([float(logs.mean()) for logs in log_probabilities(model, features)] for features in (given, alone))
        by_probability.append(with_history)
        by_information.append([here - anywhere for here, anywhere in zip(with_history, without, strict=True)])
    return metrics.auc(*by_probability), metrics.auc(*by_information)
