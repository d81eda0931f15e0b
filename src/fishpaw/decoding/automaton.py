"""A regular expression as a deterministic automaton that reads UTF-8, in tables. By partial derivatives: Antimirov 1996,
https://doi.org/10.1016/0304-3975(95)00182-4: a state is the set of expressions of which the rest of the text must match one.

What a class of characters holds is asked of Python's `re`, so it is the same there and here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fishpaw.errors import ConfigError

__all__ = ["Automaton"]

MOST_STATES = 8192
MOST_WAYS = 2**17                                                # heads of all states: a few tenths of a second
DEEPEST = 100                                                    # groups inside groups
LAST = 0x110000                                                  # code points

Array = NDArray[np.int32]


class Automaton:
    """What `re.fullmatch(expression, text)` accepts, read byte by byte.

    Supported: characters, `.`, classes in brackets, \\d \\w \\s and their opposites, escapes of one character, groups (also named ones),
    |, * + ? {m,n} (a ? after one is harmless), ^ at the beginning and $ at the end. ConfigError, with the place, for the rest: back
    references, look-around, \\b and its like, flags, atomic groups, possessive repetition; and for more than 8,192 states, or 2**17 ways
    out of them in all.

    A reading is a pair: state, 0 at first, and node, how far a character of several bytes is read, 0 between characters. `dead`: the state
    that nothing leaves; accepting [dead+1]: where a text may end (with node 0).
    """

    def __init__(self, expression: str) -> None:
        terms = _Terms()
        root = _Parser(expression, terms).parse()
        self._bytes, members, self._none = _alphabet(tuple(terms.sets))          # [nodes 256]; the class of bytes that are no UTF-8
        rows: list[dict[int, frozenset[int]]] = []
        index = {frozenset([root]): 0}
        queue = [frozenset([root])]
        ways = 0
        for state in queue:
            found: dict[int, set[int]] = {}
            for term in state:
                ways += len(terms.heads(term))
                for kind, rest in terms.heads(term):
                    for label in members[kind]:
                        found.setdefault(label, set()).add(rest)
            rows.append({label: terms.widest(rests) for label, rests in found.items()})
            for target in rows[-1].values():
                if target not in index:
                    index[target] = len(index)
                    queue.append(target)
            if len(index) > MOST_STATES or ways > MOST_WAYS:
                what = f"more than {MOST_STATES} states" if len(index) > MOST_STATES else "too many ways to read a text: counts multiply"
                raise ConfigError(f"the pattern {_short(expression)} makes {what}.",
                                  fix="Simplify it: smaller counts, fewer alternatives. For many fixed answers there is Choices.")
        self.dead = len(index)
        self._moves: Array = np.full((self.dead + 1, self._none + 1), self.dead, np.int32)
        for number, row in enumerate(rows):
            for label, target in row.items():
                self._moves[number, label] = index[target]
        self.accepting = np.array([*(any(map(terms.nullable.__getitem__, state)) for state in queue), False])
        self.nodes = len(self._bytes)
        self._hopeful = self._hopes()                                                                         # [nodes dead+1]

    def read(self, states: Array, nodes: Array, found: Array) -> tuple[Array, Array]:
        """states, nodes, bytes, all of one shape -> states, nodes. Dead as soon as no end of a character begun leads on."""
        codes = self._bytes[nodes, found]
        whole = codes <= self._none                              # a class: the character is complete
        following = np.where(whole, 0, codes - self._none - 1)
        states = np.where(whole, self._moves[states, np.minimum(codes, self._none)], states)
        return np.where(self._hopeful[following, states], states, self.dead), following

    def accepts(self, text: str) -> bool:
        """Whether it matches the whole text. A lone surrogate matches nothing."""
        state, node = np.zeros(1, np.int32), np.zeros(1, np.int32)
        for byte in text.encode("utf-8", "surrogatepass"):
            state, node = self.read(state, node, np.array([byte], np.int32))
        return bool(self.accepting[state[0]] and node[0] == 0)

    def _hopes(self) -> NDArray[np.bool_]:
        """[nodes dead+1]: whether a character of which so much was read can lead on from a state."""
        onward = self._moves != self.dead                                                                     # [dead+1 classes+1]
        hopes = np.zeros((self.nodes, self.dead + 1), bool)
        for node in range(1, self.nodes):                        # what a node leads to has a smaller number
            codes = np.unique(self._bytes[node])
            hopes[node] = onward[:, codes[codes <= self._none]].any(1) | hopes[codes[codes > self._none] - self._none - 1].any(0)
        hopes[0, :-1] = True
        return hopes


class _Term(NamedTuple):
    """kind "empty" · "one": parts is the number of a class · "join": parts is first, rest · "either": parts · "repeat": of its one part."""

    kind: str
    parts: tuple[int, ...] = ()
    low: int = 0
    high: int | None = None


class _Terms:
    """Expressions as numbers, equal ones equal: 0 is the empty text; nullable: whether it matches the empty text."""

    def __init__(self) -> None:
        self.sets: dict[str, int] = {}                           # sources of the classes, for `re` -> number
        self.nullable: list[bool] = []
        self._terms: list[_Term] = []
        self._index: dict[_Term, int] = {}
        self._heads: dict[int, tuple[tuple[int, int], ...]] = {}
        self._spans: list[tuple[tuple[int, int], float]] = []    # of x{,n}y ((x, y), n), of others themselves and 0
        self._add(_Term("empty"), True)

    def one(self, source: str) -> int:
        """One character of a class."""
        return self._add(_Term("one", (self.sets.setdefault(source, len(self.sets)),)), False)

    def join(self, parts: Sequence[int]) -> int:
        """One after another, as nested pairs (first, rest)."""
        flat: list[int] = []
        *before, term = (0, *parts)
        for part in before:
            while self._terms[part].kind == "join":
                first, part = self._terms[part].parts
                flat.append(first)
            flat.append(part)
        for part in reversed(flat):
            if part and term:
                term = self._add(_Term("join", (part, term)), self.nullable[part] and self.nullable[term])
            else:
                term = part or term
        return term

    def either(self, parts: Sequence[int]) -> int:
        different = tuple(sorted(set(parts)))
        return different[0] if len(different) == 1 else self._add(_Term("either", different), any(self.nullable[one] for one in different))

    def repeat(self, part: int, low: int, high: int | None) -> int:
        if part == 0 or high == 0:
            return 0
        return part if (low, high) == (1, 1) else self._add(_Term("repeat", (part,), low, high), low == 0 or self.nullable[part])

    def heads(self, term: int) -> tuple[tuple[int, int], ...]:
        """(class of the first character, what must follow it): all the ways on."""
        if term not in self._heads:
            self._heads[term] = tuple(dict.fromkeys(self._ways(term)))
        return self._heads[term]

    def widest(self, terms: set[int]) -> frozenset[int]:
        """The same texts in fewer terms: without x{,m}y where there is x{,n}y, n > m, and without y where there is xy, x nullable."""
        kept: dict[tuple[int, int], int] = {}
        for term in terms:
            what, most = self._spans[term]
            if what not in kept or self._spans[kept[what]][1] < most:
                kept[what] = term
        held: set[int] = set()
        for term in kept.values():
            while term not in held and self._terms[term].kind == "join" and self.nullable[self._terms[term].parts[0]]:
                term = self._terms[term].parts[1]
                held.add(term)
        return frozenset(kept.values()) - held

    def _ways(self, term: int) -> Iterator[tuple[int, int]]:
        while self._terms[term].kind == "join":                  # a loop, for a long text is a deep term
            first, rest = self._terms[term].parts
            yield from ((label, self.join([after, rest])) for label, after in self.heads(first))
            if not self.nullable[first]:
                return
            term = rest
        kind, parts, low, high = self._terms[term]
        if kind == "one":
            yield parts[0], 0
        elif kind == "either":
            for part in parts:
                yield from self.heads(part)
        elif kind == "repeat":
            fewer = self.repeat(parts[0], max(low - 1, 0), None if high is None else high - 1)
            yield from ((label, self.join([after, fewer])) for label, after in self.heads(parts[0]))

    def _add(self, term: _Term, nullable: bool) -> int:
        if term not in self._index:
            number = self._index[term] = len(self._terms)
            self._terms.append(term)
            self.nullable.append(nullable)
            first, rest = (self._terms[term.parts[0]], term.parts[1]) if term.kind == "join" else (term, 0)
            optional = first.kind == "repeat" and first.low == 0
            self._spans.append(((first.parts[0], rest), inf if first.high is None else first.high) if optional else ((-1, number), 0))
        return self._index[term]


_REPEAT = re.compile(r"([*+?])|\{(?!\})(\d*)(,?)(\d*)\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.S)
_ESCAPE = re.compile(r"\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|[0-3][0-7]{2}"
                     r"|[dDwWsSafnrtv]|[^a-zA-Z0-9])", re.S)
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")
_REFUSED = (
    (re.compile(r"\\[1-9]|\(\?P="), "a back reference"), (re.compile(r"\(\?<?[=!]"), "a look-around"),
    (re.compile(r"\\[bBAZ]|[\^$]"), "an anchor"), (re.compile(r"\(\?>"), "an atomic group"), (re.compile(r"\(\?\("), "a condition"),
    (re.compile(r"\(\?#"), "a comment"), (re.compile(r"\(\?"), "a flag"),
)


class _Parser:
    """Python's syntax, as far as it describes a regular language, read from left to right."""

    def __init__(self, expression: str, terms: _Terms) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                re.compile(expression)
        except (re.error, FutureWarning, DeprecationWarning, RecursionError, OverflowError) as error:
            raise ConfigError(f"the pattern {_short(expression)} is no regular expression: {error}.", fix="Correct it.") from None
        self._text, self._terms = expression, terms
        self._place = int(expression.startswith("^"))            # fullmatch begins at the beginning and ends at the end anyway
        self._stop = len(expression) - (re.search(r"(?<!\\)(?:\\\\)*\$\Z", expression) is not None)

    def parse(self) -> int:
        term = self._either(0)
        if self._place < self._stop:
            raise self._refusal("a parenthesis too many")
        return term

    def _either(self, depth: int) -> int:
        if depth > DEEPEST:
            raise self._refusal(f"more than {DEEPEST} groups inside each other")
        options = [self._join(depth)]
        while self._next() == "|":
            self._place += 1
            options.append(self._join(depth))
        return self._terms.either(options)

    def _join(self, depth: int) -> int:
        parts = []
        while self._next() not in ("", "|", ")"):
            part = self._one(depth)
            found = _REPEAT.match(self._text, self._place, self._stop)
            if found:
                self._place = found.end()
                if self._next() == "+":
                    raise self._refusal("possessive repetition")
                self._place += self._next() == "?"
                part = self._terms.repeat(part, *_bounds(found))
            parts.append(part)
        return self._terms.join(parts)

    def _one(self, depth: int) -> int:
        if group := _GROUP.match(self._text, self._place, self._stop):
            self._place = group.end()
            term = self._either(depth + 1)
            self._place += 1                                     # ")": `re` has seen that it is there
            return term
        for form in (_CLASS, _ESCAPE):
            if found := form.match(self._text, self._place, self._stop):
                self._place = found.end()
                return self._terms.one(found[0])
        for form, name in _REFUSED:
            if form.match(self._text, self._place):
                raise self._refusal(name)
        source = self._next() if self._next() == "." else re.escape(self._next())
        self._place += 1
        return self._terms.one(source)

    def _next(self) -> str:
        return self._text[self._place] if self._place < self._stop else ""

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(f"the pattern {_short(self._text)} has {what} at character {self._place + 1}, which a constraint can't follow.",
                           fix="Write it without.")


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    if found[1]:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[1]]
    low = int(found[2] or 0)
    return low, low if not found[3] else int(found[4]) if found[4] else None


@lru_cache(maxsize=1)
def _everything() -> str:
    return "".join(map(chr, range(LAST)))


@lru_cache(maxsize=256)
def _spans(source: str) -> tuple[tuple[int, int], ...]:
    """The code points that a class holds, as [from, to)."""
    if len(source) == 1 and source != ".":
        return ((ord(source), ord(source) + 1),)
    if len(source) == 2 and source[0] == "\\" and not source[1].isalnum():
        return ((ord(source[1]), ord(source[1]) + 1),)
    return tuple(match.span() for match in re.finditer(f"(?:{source})+", _everything()))


@lru_cache(maxsize=16)
def _alphabet(sources: tuple[str, ...]) -> tuple[Array, tuple[tuple[int, ...], ...], int]:
    """The decoder of UTF-8 into the characters' classes; the classes within each source; the one that is none."""
    table, members = _partition(sources)
    none = int(table.max()) + 1
    return _decoder(table, none), tuple(map(tuple, members)), none


def _partition(sources: Sequence[str]) -> tuple[NDArray[np.int32], list[list[int]]]:
    """Code points that no class tells apart are one -> (number of each code point [0x110000], the numbers in each class)."""
    borders = sorted({0, *(border for source in sources for span in _spans(source) for border in span)} - {LAST})
    place = {border: number for number, border in enumerate([*borders, LAST])}
    inside = np.zeros((len(sources), len(borders)), bool)
    for number, source in enumerate(sources):
        for low, high in _spans(source):
            inside[number, place[low]:place[high]] = True
    kinds, which = np.unique(inside, axis=1, return_inverse=True) if sources else (np.zeros((0, 1), bool), np.zeros(1, np.int64))
    table = np.repeat(which.reshape(-1).astype(np.int32), np.diff([*borders, LAST]))
    return table, [np.nonzero(row)[0].tolist() for row in kinds]


def _decoder(table: NDArray[np.int32], none: int) -> Array:
    """[nodes 256]: from a node, what a byte makes: a class (<= none), or node k as none + 1 + k. Node 0 stands between characters."""
    table = table.copy()
    table[0xD800:0xE000] = none                                  # surrogates have no UTF-8
    rows: list[Array] = []
    known: dict[bytes, int] = {}

    def node(values: NDArray[np.int32]) -> int:                  # what 64 ** k code points are, k continuation bytes to come
        if len(values) == 1:
            return int(values[0])
        if (values == none).all():
            return none
        key = values.tobytes()
        if key not in known:
            row = np.full(256, none, np.int32)
            row[0x80:0xC0] = values if len(values) == 64 else [node(part) for part in np.split(values, 64)]
            known[key] = len(rows)                               # after its children
            rows.append(row)
        return none + 1 + known[key]

    root = np.full(256, none, np.int32)
    rows.append(root)
    root[:0x80] = table[:0x80]
    whole = np.concatenate([table, np.full(0x200000 - LAST, none, np.int32)])
    for size, lead, count, shortest in ((64, 0xC0, 32, 0x80), (64**2, 0xE0, 16, 0x800), (64**3, 0xF0, 8, 0x10000)):
        values = whole[:size * count].copy()
        values[:shortest] = none                                 # an overlong form is no UTF-8
        for number, part in enumerate(np.split(values, count)):
            root[lead + number] = node(part)
    return np.stack(rows)


def _short(expression: str) -> str:
    return repr(expression if len(expression) <= 60 else f"{expression[:57]}...")
