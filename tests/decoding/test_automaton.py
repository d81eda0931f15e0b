"""The automaton accepts what re.fullmatch accepts: random expressions, all short strings, all of Unicode; the rest is refused by name."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fishpaw.decoding.automaton import Automaton
from fishpaw.errors import ConfigError

ATOMS = ["a", "b", "中", "。", r"\d", r"\w", r"\s", r"\W", ".", "[ab]", "[^a中]", "[一-龥]", r"[\d.]", r"\.", r"\n",
         r"\u4e2d", "[]a]", "-", "{", "𝄞"]
LETTERS = "ab中。1. \n-{]𝄞é"
REPEATS = ["*", "+", "?", "*?", "{2}", "{,2}", "{1,}", "{0}", "{1,3}?", "{0,}"]

expressions = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=0, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map("|".join).map("(?:{})".format),
        st.tuples(inner.map("({})".format), st.sampled_from(REPEATS)).map("".join),
    ),
    max_leaves=6,
)


@settings(max_examples=100)
@given(expressions, st.lists(st.text(LETTERS, max_size=6), min_size=30, max_size=30))
@example("(a|)*", ["", "a", "aaaa", "b"])
@example("((a?){3})*b", ["b", "aaaab", "a"])
@example("^a$", ["a", "a\n"])
@example("(?P<name>a)b$", ["ab"])
@example(".{0,2}a.{0,3}", ["aaaaaa", "baaaa", "bbaaaa", "bbba", "a", ""])
@example("(a{0,2}b{0,1}){0,2}", ["aabaab", "aaaab", "babb", "bb", "aaaaa", ""])
@example("a?b?a?b", ["b", "ab", "bab", "abab", "aab", "a"])
def test_random_expressions_accept_what_fullmatch_accepts(expression, texts):
    machine, there = Automaton(expression), re.compile(expression)
    for text in texts:
        assert machine.accepts(text) == (there.fullmatch(text) is not None), (expression, text)


@pytest.mark.parametrize("expression", [
    "a*b", "(ab|a)(bc|c)?", "(a|b)*abb", "[^a]+", "a{2,3}b{,1}", "(?:ab?c?){2}", "(a*)*b?", "x|", "", "(a|ab)(c|bcd)?",
    "^(?:a|bc)+?$", "a{}", r"\141?b"])
def test_all_strings_up_to_six_letters(expression):
    machine, there = Automaton(expression), re.compile(expression)
    for length in range(7):
        for letters in itertools.product("abc{", repeat=length) if length < 6 else itertools.product("abc", repeat=6):
            text = "".join(letters)
            assert machine.accepts(text) == (there.fullmatch(text) is not None), text


@pytest.mark.parametrize("source", [r"\w", r"\d", r"\s", r"\S", ".", "[^一-龥]",
                                    r"[\u0800-\uffff]", r"[\x00-\x7f𐀀]", "[é]", r"[\U0010fff0-\U0010ffff]"])
def test_every_border_of_a_class_in_all_of_unicode(source):
    machine, there = Automaton(source), re.compile(source)
    everything = "".join(map(chr, range(0x110000)))
    borders = {place for match in re.finditer(f"(?:{source})+", everything) for place in match.span()}
    near = sorted({code for place in borders for code in (place - 1, place) if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000})
    for code in [*near[:: len(near) // 400 + 1], 0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]:
        assert machine.accepts(chr(code)) == (there.fullmatch(chr(code)) is not None), hex(code)


def test_a_surrogate_is_never_accepted():
    assert not Automaton(".").accepts("\ud800") and not Automaton(r"[\ud800-\udfff]").accepts("\udfff")


def test_bytes_that_no_character_continues_are_dead_at_once():
    import numpy as np

    def read(expression, raw):
        machine = Automaton(expression)
        state = node = np.zeros(1, np.int32)
        for byte in raw:
            state, node = machine.read(state, node, np.array([byte], np.int32))
        return state[0] != machine.dead

    assert read("[一-龥]", b"\xe4") and read("[一-龥]", b"\xe4\xb8") and not read("[a-z]", b"\xe4") and not read("中", b"\xe4\xb9")
    for raw in (b"\x80", b"\xc0", b"\xc1\xbf", b"\xe0\x80", b"\xed\xa0", b"\xf0\x80", b"\xf4\x90", b"\xf5", b"\xff"):
        assert not read("(?:.|\n)*", raw), raw


@pytest.mark.parametrize(("expression", "says"), [
    (r"(a)\1", "a back reference at character 4"), ("(?P<x>a)(?P=x)", "a back reference at character 9"),
    ("b(?=a)", "a look-around at character 2"),
    ("(?<!a)b", "a look-around at character 1"), (r"a\b", "an anchor at character 2"), (r"\Aa", "an anchor at character 1"),
    ("a^b", "an anchor at character 2"), ("a$|b", "an anchor at character 2"), ("(?i)a", "a flag at character 1"), ("(?i:a)", "a flag"),
    ("(?#why)a", "a comment"), ("(?>a)b", "an atomic group"), ("a*+b", "possessive repetition"), ("(a)(?(1)b|c)", "a condition"),
    ("(" * 101 + ")" * 101, "more than 100 groups inside each other"), ("a(", r"no regular expression: missing \)"),
    ("*a", "no regular expression: nothing to repeat at position 0"), ("[[a]b]", "no regular expression: Possible nested set"),
    ("(a|b)*a(a|b){20}", "more than 8192 states"), ("(a{1000}){1000}", "more than 8192 states"),
    ("a{99999999999}", "no regular expression"), ("(.{0,300}){0,300}", "too many ways"), ("(a{0,90}b{0,90}){0,90}", "too many ways"),
    ("((a{0,50}){0,50}){0,50}", "too many ways"),
])
def test_what_is_refused_is_named_with_its_place(expression, says):
    began = time.process_time()
    with pytest.raises(ConfigError, match=says):
        Automaton(expression)
    assert time.process_time() - began < 2                       # 0.2 s on one core; the counts in counts took 20 s


def test_a_missing_state_is_noticed(monkeypatch):
    """The planted fault: repetition that forgets its lower bound."""
    from fishpaw.decoding import automaton
    original = automaton._Terms.repeat
    monkeypatch.setattr(automaton._Terms, "repeat", lambda self, part, low, high: original(self, part, 0, high))
    assert Automaton("a{2,3}").accepts("a")
    assert re.fullmatch("a{2,3}", "a") is None


@pytest.mark.parametrize("expression", ["中文" * 2000, "|".join(map(str, range(1000))), r"\w{1,500}", "(?:[a-z]+, ){0,40}end",
                                        "a?" * 300 + "b"])
def test_large_expressions_are_quick(expression):
    began = time.process_time()
    Automaton(expression)
    assert time.process_time() - began < 6                       # 0.1 to 1.5 s on one core of a shared machine


def test_a_word_within_a_hundred_characters_of_any():
    machine = Automaton(".{0,100}好.{0,100}")
    for before, after in ((0, 0), (100, 100), (7, 93), (101, 0), (0, 101)):
        assert machine.accepts("x" * before + "好" + "x" * after) is (max(before, after) <= 100)
    assert machine.accepts("x" * 60 + "好" + "x" * 30 + "好" + "x" * 100)


def test_a_long_text_is_not_too_deep():
    assert Automaton("ab" * 3000).accepts("ab" * 3000) and not Automaton("ab" * 3000).accepts("ab" * 2999)
