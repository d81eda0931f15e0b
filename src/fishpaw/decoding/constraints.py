"""What may be generated: a fixed set of tokens, given sequences only (a trie), given phrases at least; each hypothesis keeps its own place.

A constraint is a processor with `start` and `select`: the search moves its state with the beam, so no hypothesis continues in the place of
another. It reads the Limits of the search and lets nothing begin that can't be finished, end token included, within max_new.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fishpaw.decoding.limits import Limits
from fishpaw.errors import ConfigError

__all__ = ["NEVER", "UNREACHABLE", "Allowed", "Choices", "Constraint", "Forced", "Trie", "check_limits", "check_rows"]

NEVER = float("-inf")
UNREACHABLE = 2**40                                              # tokens to the end from where there is none

Integers = NDArray[np.int64]


@dataclass(frozen=True, init=False)
class Allowed:
    """Only these tokens at every step; keeps no state. Name the end tokens among them, or nothing but max_new ends a hypothesis."""

    tokens: frozenset[int]

    def __init__(self, tokens: Iterable[int]) -> None:
        object.__setattr__(self, "tokens", frozenset(_token(token, "Allowed") for token in tokens))
        if not self.tokens:
            raise ConfigError("Allowed was given no token.", fix="Name at least one.")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return _keep(logits, [np.array(sorted(self.tokens))] * len(logits), "Allowed")

    def __repr__(self) -> str:
        return f"Allowed({len(self.tokens)} tokens)"


class Trie:
    """Sequences of whole numbers from 0 as a tree in arrays. Node 0 is the root; nodes are numbered level by level, children of a node are
    adjacent and sorted by label.

    labels [n]: the number that leads to a node, -1 for the root; parents [n]; first [n+1]: the children of node i are the nodes first[i] to
    first[i+1] - 1; leaves [s]: the node where each of the sequences given ends. Raises ConfigError for no sequence, or an empty one.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        lengths = np.array([len(sequence) for sequence in sequences])
        if not len(lengths) or not lengths.all():
            raise ConfigError("There is no sequence, or an empty one, among those of a trie.", fix="Give each at least one token.")
        flat = np.array([_token(token, "a trie") for sequence in sequences for token in sequence])
        begin = lengths.cumsum() - lengths                                                                    # [s] in flat
        width = int(flat.max()) + 1
        labels, parents = [np.array([-1])], [np.array([-1])]
        node = np.zeros(len(lengths), np.int64)                                                               # [s] where each one stands
        count = 1
        for depth in range(int(lengths.max())):
            going = np.nonzero(lengths > depth)[0]
            pairs, place = np.unique(node[going] * width + flat[begin[going] + depth], return_inverse=True)
            node[going] = count + place
            parents.append(pairs // width)
            labels.append(pairs % width)
            count += len(pairs)
        self.labels: Integers = np.concatenate(labels)
        self.parents: Integers = np.concatenate(parents)
        self.first: Integers = 1 + np.searchsorted(self.parents[1:], np.arange(count + 1))
        self.leaves: Integers = node

    def __len__(self) -> int:
        return len(self.labels)


class Constraint(ABC):
    """A processor that walks an automaton over tokens, a state a row; an end token may follow in the accepting states alone.

    A subclass gives `origin`, `moves` and `least`: for each state the fewest tokens to an accepting one, which has 0. A move is allowed if
    what is left of max_new suffices to reach an accepting state and close. Hence no hypothesis is ever cut by max_new, and none gets stuck.
    Other processors come after it; if they ban all that it leaves, the search says so.
    """

    least: Integers                                                                                           # [states]

    def __init__(self, limits: Limits) -> None:
        name = type(self).__name__
        check_limits(limits, name)
        if not limits.ends:
            raise ConfigError(f"{name} needs an end token, but ends is empty.", fix="Name the end token in the limits.")
        if limits.min_new:
            raise ConfigError(f"min_new is {limits.min_new}, but {name} says itself how short an answer may be.", fix="Leave min_new at 0.")
        self.limits = limits
        self._ends = np.array(sorted(set(limits.ends)))
        self._states: list[int] = []                                                                          # [r]

    @abstractmethod
    def origin(self, prompt: int) -> int:
        """The state in which an answer to this prompt begins."""

    @abstractmethod
    def moves(self, state: int) -> tuple[Integers, Integers]:
        """(the tokens that may follow [k], sorted; the state that each leads to [k])."""

    def start(self, prompts: Any, rows: int) -> None:
        self._states = [self.origin(prompt) for prompt in range(rows)]

    def select(self, index: Tensor) -> None:
        self._states = [self._states[row] for row in index.tolist()]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        name = type(self).__name__
        check_rows(len(self._states), len(tokens), name)
        if tokens.shape[1]:
            self._states = [self._follow(state, token) for state, token in zip(self._states, tokens[:, -1].tolist(), strict=True)]
        room = self.limits.max_new - tokens.shape[1] - 2         # tokens left after this one and the closing end
        allowed = {state: self._allowed(state, room) for state in set(self._states)}
        return _keep(logits, [allowed[state] for state in self._states], name)

    def check_room(self, state: int, what: str) -> None:
        """ConfigError unless an answer that begins in this state fits in max_new."""
        shortest = int(self.least[state]) + 1
        if shortest > self.limits.max_new:
            raise ConfigError(f"{what} takes at least {shortest} tokens, the end token included, but max_new is {self.limits.max_new}.",
                              fix="Raise max_new.")

    def _allowed(self, state: int, room: int) -> Integers:
        tokens, targets = self.moves(state)
        tokens = tokens[self.least[targets] <= room]
        return np.concatenate([tokens, self._ends]) if self.least[state] == 0 else tokens

    def _follow(self, state: int, token: int) -> int:
        tokens, targets = self.moves(state)
        place = int(np.searchsorted(tokens, token))
        if place == len(tokens) or tokens[place] != token:
            raise ConfigError(f"Token {token} was chosen where {type(self).__name__} had banned it.",
                              fix="Give every search its own constraint; a search of your own must call select whenever rows move.")
        return int(targets[place])


class Choices(Constraint):
    """The answer is one of the given token sequences, whole, then an end token. tries: one for all prompts, or one a prompt."""

    def __init__(self, tries: Trie | Sequence[Trie], *, limits: Limits) -> None:
        super().__init__(limits)
        forest = [tries] if isinstance(tries, Trie) else list(tries)
        if not forest:
            raise ConfigError("Choices was given no trie.", fix="Give one for all prompts, or one for each.")
        self.prompts = None if isinstance(tries, Trie) else len(forest)
        sizes = np.array([len(trie) for trie in forest])
        self._roots: Integers = sizes.cumsum() - sizes
        self._labels = np.concatenate([trie.labels for trie in forest])
        self._first = np.concatenate([trie.first[:-1] + root for trie, root in zip(forest, self._roots, strict=True)])
        self._behind = np.concatenate([trie.first[1:] + root for trie, root in zip(forest, self._roots, strict=True)])
        self.least = np.concatenate([_distances(trie) for trie in forest])
        for number, root in enumerate(self._roots.tolist()):
            for end in limits.ends:
                if (forest[number].labels == end).any():
                    raise ConfigError(f"A choice of prompt {number} holds the end token {end}.",
                                      fix="Leave it out: Choices closes by itself.")
            self.check_room(root, f"The shortest choice of prompt {number}" if self.prompts else "The shortest choice")

    def of(self, places: Sequence[int]) -> Choices:
        """The choices of the prompts at these places."""
        if self.prompts is None:
            return self
        found = copy(self)
        found.prompts, found._roots = len(places), self._roots[list(places)]
        return found

    def start(self, prompts: Any, rows: int) -> None:
        if self.prompts not in (None, rows):
            raise ConfigError(f"{self.prompts} tries for {rows} prompts.", fix="Give one for each prompt, or a single one for all.")
        super().start(prompts, rows)

    def origin(self, prompt: int) -> int:
        return 0 if self.prompts is None else int(self._roots[prompt])

    def moves(self, state: int) -> tuple[Integers, Integers]:
        low, high = self._first[state], self._behind[state]
        return self._labels[low:high], np.arange(low, high)

    def __repr__(self) -> str:
        return f"Choices({'a trie' if self.prompts is None else f'{self.prompts} tries'})"


class Forced:
    """Each phrase, a sequence of tokens, occurs in the answer, whole, in any order; they may overlap. Until then the end tokens are banned,
    and so is any token after which the missing phrases might not fit in max_new any more.

    What is promised: every answer holds every phrase, and the search is never stuck; max_new may cut an answer behind the last phrase. The
    room reserved is that of the missing phrases laid end to end, the one begun continued: an answer in which they would fit only by
    overlapping is not found. What the model doesn't want it puts off until it must come; a beam search that sets beams apart for those who
    have said more (arXiv:1804.06609) this is not.
    """

    def __init__(self, phrases: Sequence[Sequence[int]], *, limits: Limits) -> None:
        check_limits(limits, "Forced")
        self.phrases = tuple(dict.fromkeys(tuple(_token(token, "Forced") for token in phrase) for phrase in phrases))
        if not self.phrases or not all(self.phrases):
            raise ConfigError("Forced was given no phrase, or an empty one.", fix="Give each at least one token.")
        inside = set(limits.ends) & {token for phrase in self.phrases for token in phrase}
        if inside:
            raise ConfigError(f"A phrase of Forced holds the end token {min(inside)}.", fix="Leave it out.")
        self.limits = limits
        shortest = sum(map(len, self.phrases))
        if shortest > limits.max_new:
            raise ConfigError(f"The phrases of Forced have {shortest} tokens, but max_new is {limits.max_new}.",
                              fix="Raise max_new, or force fewer.")
        self._borders = [_borders(phrase) for phrase in self.phrases]
        self._known = sorted({token for phrase in self.phrases for token in phrase})
        self._states: list[tuple[int, ...]] = []                 # [r]: how much of each phrase is said; its length once it was whole

    def start(self, prompts: Any, rows: int) -> None:
        self._states = [(0,) * len(self.phrases)] * rows

    def select(self, index: Tensor) -> None:
        self._states = [self._states[row] for row in index.tolist()]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        check_rows(len(self._states), len(tokens), "Forced")
        if self._known[-1] >= logits.shape[-1]:
            raise ConfigError(f"Forced names token {self._known[-1]}; allowed: 0 to {logits.shape[-1] - 1}, the model's vocabulary.",
                              fix="Take the phrases from the tokenizer that belongs to this model.")
        if tokens.shape[1]:
            self._states = [self._follow(state, token) for state, token in zip(self._states, tokens[:, -1].tolist(), strict=True)]
        room = self.limits.max_new - tokens.shape[1] - 1         # tokens left after this one
        allowed = {state: self._allowed(state, room, logits) for state in set(self._states)}
        return logits.masked_fill(~torch.stack([allowed[state] for state in self._states]), NEVER)

    def __repr__(self) -> str:
        return f"Forced({len(self.phrases)} phrases)"

    def _allowed(self, state: tuple[int, ...], room: int, like: Tensor) -> Tensor:
        """-> bool [v]. A token of no phrase breaks off all that were begun."""
        broken = tuple(said if said == len(phrase) else 0 for said, phrase in zip(state, self.phrases, strict=True))
        keep = torch.full(like.shape[-1:], self._missing(broken) <= room, device=like.device)
        keep[self._known] = torch.tensor([self._missing(self._follow(state, token)) <= room for token in self._known], device=like.device)
        keep[list(self.limits.ends)] = self._missing(state) == 0
        return keep                                                                                           # [v]

    def _follow(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return tuple(_advance(phrase, borders, said, token)
                     for phrase, borders, said in zip(self.phrases, self._borders, state, strict=True))

    def _missing(self, state: tuple[int, ...]) -> int:
        """Tokens that suffice to say all: continue the phrase that is furthest, then the others from their beginnings."""
        open_ = [(len(phrase), said) for phrase, said in zip(self.phrases, state, strict=True) if said < len(phrase)]
        return sum(length for length, _ in open_) - max((said for _, said in open_), default=0)


def check_limits(limits: Limits, name: str) -> None:
    """ConfigError for limits that end at the second end token or later: a constraint closes once."""
    if limits.min_ends != 1:
        raise ConfigError(f"min_ends is {limits.min_ends}, but {name} ends at the first end token.", fix="Leave min_ends at 1.")


def check_rows(states: int, rows: int, name: str) -> None:
    """ConfigError where a constraint has not a state for each row: it was not started, or the search doesn't move it."""
    if states != rows:
        raise ConfigError(f"{name} has {states} states for {rows} rows.", fix="A search must call start, and select whenever rows move.")


def _keep(logits: Tensor, allowed: list[Integers], name: str) -> Tensor:
    """logits [r v], the tokens that each row keeps -> a new tensor with -inf elsewhere."""
    rows = torch.arange(len(allowed)).repeat_interleave(torch.tensor([len(tokens) for tokens in allowed], dtype=torch.long))
    tokens = torch.from_numpy(np.concatenate(allowed))
    if len(tokens) and int(tokens.max()) >= logits.shape[-1]:
        raise ConfigError(f"{name} names token {int(tokens.max())}; allowed: 0 to {logits.shape[-1] - 1}, the model's vocabulary.",
                          fix="Take the tokens from the tokenizer that belongs to this model.")
    rows, tokens = rows.to(logits.device), tokens.to(logits.device)
    kept = torch.full_like(logits, NEVER)
    kept[rows, tokens] = logits[rows, tokens]
    return kept                                                                                               # [r v]


def _token(token: int, name: str) -> int:
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise ConfigError(f"{name} holds {token!r}, which is no token.", fix="Give ids: whole numbers from 0.")
    return token


def _distances(trie: Trie) -> Integers:
    """Fewest tokens from each node to the end of a sequence [n]."""
    least = np.full(len(trie), UNREACHABLE)
    least[trie.leaves] = 0
    for node in range(len(trie) - 1, 0, -1):
        parent = trie.parents[node]
        least[parent] = min(least[parent], least[node] + 1)
    return least


def _borders(phrase: tuple[int, ...]) -> list[int]:
    """For each length the longest proper border, as Knuth, Morris and Pratt: a prefix that is a suffix, too."""
    borders = [0, 0]
    for token in phrase[1:]:
        said = borders[-1]
        while said and phrase[said] != token:
            said = borders[said]
        borders.append(said + 1 if phrase[said] == token else 0)
    return borders


def _advance(phrase: tuple[int, ...], borders: list[int], said: int, token: int) -> int:
    if said == len(phrase):
        return said                                              # it is in, for good
    while said and phrase[said] != token:
        said = borders[said]
    return said + 1 if phrase[said] == token else 0
