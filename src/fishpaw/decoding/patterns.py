"""Text that matches a regular expression: the automaton of the expression, walked with every token of the vocabulary.

From a state, the vocabulary is read as a trie, all tokens at once: the characters that tokens share are read once (the idea of
arXiv:2307.09702, without an index of all states in memory). States from which no tokens lead to a match are left out beforehand.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fishpaw.decoding.automaton import Automaton
from fishpaw.decoding.constraints import UNREACHABLE, Constraint, Integers
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.spelling import spell
from fishpaw.errors import ConfigError
from fishpaw.text.encoding import Tokenizer

__all__ = ["Pattern"]

MOST_STATES = 16384
KEPT = 2**22                                                     # moves that stay in memory, 16 bytes each; other states are walked again


class Pattern(Constraint):
    """The text of the answer, as tokenizer.decode gives it, matches the expression as `re.fullmatch` would; then an end token follows.

    expression: see `Automaton` for its syntax. Every way of splitting a text into tokens is allowed. Special tokens and those that decode
    to nothing are never generated; WordPiece does without a single ' (`spell` says what else). Construction walks all states once, a few
    milliseconds each with 21,128 tokens: keep the object for all prompts. ConfigError for syntax that no automaton has, a tokenizer whose
    texts don't join token by token, a pattern that no sequence of tokens spells, and one whose shortest match doesn't fit in max_new.
    """

    def __init__(self, expression: str, tokenizer: Tokenizer, *, limits: Limits) -> None:
        super().__init__(limits)
        self.expression = expression
        self._automaton = Automaton(expression)
        self._spelling = spell(tokenizer)  # type: ignore[arg-type]  # tokenizers are hashed by identity
        self._index = {0: 0}                                     # a place, as _split has it -> number
        self._places = [0]
        kept = max(16, KEPT // len(self._spelling.trie))
        self._row = lru_cache(maxsize=kept)(self._walk)
        self._reached = lru_cache(maxsize=kept)(self._descend)
        sources: list[Integers] = []
        targets: list[Integers] = []
        for number, _ in enumerate(self._places):                # grows while it is walked
            targets.append(np.unique(self._row(number)[1]))
            sources.append(np.full(len(targets[-1]), number))
            if len(self._places) > MOST_STATES:
                raise ConfigError(f"the pattern {expression[:60]!r} makes more than {MOST_STATES} states with these tokens.",
                                  fix="Simplify it: smaller counts, fewer alternatives. For many fixed answers there is Choices.")
        _, nodes, states = self._split(np.array(self._places))
        accepting = (nodes == 0) & self._automaton.accepting[states]
        self.least = _distances(np.concatenate(sources), np.concatenate(targets), accepting)
        if self.least[0] >= UNREACHABLE:
            raise ConfigError(f"no tokens of this tokenizer spell a text that matches {expression[:60]!r}.",
                              fix="Are there characters that it doesn't have (capitals, in lower case), or blanks that it puts in?")
        self.check_room(0, f"The shortest match of {expression[:60]!r}")

    def origin(self, prompt: int) -> int:
        return 0

    def moves(self, state: int) -> tuple[Integers, Integers]:
        return self._row(state)

    def __repr__(self) -> str:
        return f"Pattern({self.expression[:60]!r})"

    def _walk(self, number: int) -> tuple[Integers, Integers]:
        context, node, state = (int(part) for part in self._split(np.array(self._places[number])))
        here = self._spelling.contexts[context]
        places = self._reached(state, node)[here.leaves]                                                      # [k] -1: dead
        alive = np.nonzero((places >= 0) & ~np.isin(here.tokens, self._ends))[0]
        places = places[alive] + here.after[alive] * (self._automaton.nodes * (self._automaton.dead + 1))
        different = np.unique(places)                            # few; its inverse would be sorted for, at five times the cost
        targets = np.array([self._number(place) for place in different.tolist()], np.int64)
        return here.tokens[alive], targets[np.searchsorted(different, places)]

    def _split(self, places: Integers) -> tuple[Integers, Integers, Integers]:
        """-> contexts, nodes, states."""
        rest, states = np.divmod(places, self._automaton.dead + 1)
        contexts, nodes = np.divmod(rest, self._automaton.nodes)
        return contexts, nodes, states

    def _descend(self, state: int, node: int) -> Integers:
        """The automaton after each node of the trie, from (state, node), level by level: places [n], -1 where it is dead."""
        trie = self._spelling.trie
        states = np.full(len(trie), self._automaton.dead, np.int32)
        nodes = np.zeros(len(trie), np.int32)
        states[0], nodes[0] = state, node
        living = np.zeros(1, np.int64)
        while len(living):
            counts = trie.first[living + 1] - trie.first[living]
            parents = living.repeat(counts)
            shifts = (trie.first[living] - (counts.cumsum() - counts)).repeat(counts)
            children = np.arange(len(parents)) + shifts
            states[children], nodes[children] = self._automaton.read(states[parents], nodes[parents], trie.labels[children])
            living = children[states[children] != self._automaton.dead]
        return np.where(states == self._automaton.dead, -1, nodes.astype(np.int64) * (self._automaton.dead + 1) + states)

    def _number(self, place: int) -> int:
        if place not in self._index:
            self._index[place] = len(self._places)
            self._places.append(place)
        return self._index[place]


def _distances(sources: Integers, targets: Integers, accepting: NDArray[np.bool_]) -> Integers:
    """Fewest edges from each state to an accepting one, breadth first and backwards [s]."""
    order = np.argsort(targets, kind="stable")
    sources, first = sources[order], np.searchsorted(targets[order], np.arange(len(accepting) + 1))
    least = np.where(accepting, 0, UNREACHABLE)
    queue = np.nonzero(accepting)[0].tolist()
    for state in queue:
        for source in sources[first[state]:first[state + 1]].tolist():
            if least[source] == UNREACHABLE:
                least[source] = least[state] + 1
                queue.append(source)
    return least
