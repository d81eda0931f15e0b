"""What goes where: results on stdout as they are, messages on stderr, and an end without complaints."""

from __future__ import annotations

import io
import json
import sys

import pytest

from fishpaw import terminal


class Closed(io.StringIO):
    """A stdout whose reader has gone, or whose disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_figures_in_both_ways(capsys):
    terminal.write_figures({"step": 3, "loss": 0.25, "best": None}, False)
    terminal.write_figures({"step": 3, "loss": 0.25, "best": None, "鱼": "掌"}, True)
    plain, objects = capsys.readouterr().out.split("{")
    assert plain == "step         3\nloss         0.2500\n"
    assert json.loads("{" + objects) == {"step": 3, "loss": 0.25, "best": None, "鱼": "掌"} and "鱼" in objects


def test_a_reader_that_left_is_no_mistake_a_full_disk_is_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Closed(BrokenPipeError()))
    with pytest.raises(SystemExit) as end:
        terminal.write("x")
    assert end.value.code == 0
    monkeypatch.setattr(sys, "stdout", Closed(OSError(28, "No space left on device")))
    with pytest.raises(SystemExit) as end:
        terminal.write("x")
    assert end.value.code == 2 and capsys.readouterr().err == "fishpaw: standard output: can't be written (No space left on device).\n"


def test_streams_that_are_closed_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    terminal.write("x")
    terminal.tell("x")
    assert terminal.beside_a_bar(terminal.tell) is terminal.tell
    with pytest.raises(SystemExit):
        terminal.leave(3)


def test_lines_stand_above_a_bar_only_on_a_terminal(monkeypatch):
    said: list[str] = []
    assert terminal.beside_a_bar(said.append) == said.append
    monkeypatch.setattr(sys, "stderr", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    above = terminal.beside_a_bar(said.append)
    assert above != said.append
    above("x")
    assert said == ["x"]


def test_arguments_are_utf8_whatever_the_locale_made_of_them(monkeypatch):
    assert terminal.decoded("今天") == "今天"
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(terminal.os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert terminal.decoded("今天".encode().decode("ascii", "surrogateescape")) == "今天"
    assert terminal.decoded(b"\xff".decode("ascii", "surrogateescape")) == "\ufffd"


def test_warnings_are_a_sentence(capsys):
    terminal.show_warning(UserWarning("two lines are bad"), UserWarning, "cli.py", 7)
    assert capsys.readouterr().err == "fishpaw: two lines are bad\n"


def test_arguments_are_spelled_as_options():
    said = {
        "max_new is 0. Give 1 or more.": "--max-new is 0. Give 1 or more.",
        "n is 0.": "--n is 0.",
        'Load it with mask="causal" or mask="unilm".': "Load it with --mask causal or --mask unilm.",
        "or start anew (resume=False; --restart), which": "or start anew (--restart), which",
        "max_new.tsv: n is what it is.": "max_new.tsv: n is what it is.",
        "vocab_size is 0.": "vocab_size is 0.",
        "beams and contrastive_k exclude each other. Leave one out.": "--beams and --contrastive-k exclude each other. Leave one out.",
        "sample and beams exclude each other.": "--sample and --beams exclude each other.",
        "It takes at least 9 tokens, but max_new is 6. Raise max_new.": "It takes at least 9 tokens, but --max-new is 6. Raise --max-new.",
        "It is 6. Raise max_new or lower n.": "It is 6. Raise --max-new or lower --n.",
        "consistent is for top_k and top_p.": "--consistent is for --top-k and --top-p.",
        "n is 'x'; allowed. Change n.": "--n is 'x'; allowed. Change --n.",
        "min_new is 2, but it is. Leave min_new at 0.": "--min-new is 2, but it is. Leave --min-new at 0.",
        "alone is 2. Change alone.": "--alone is 2. Change --alone.",
        "samples is 0.": "--samples is 0.", "epsilon is 2.": "--epsilon is 2.",
        "temperature is 0; Use greedy for the most probable token.": "--temperature is 0; Raise it.",
        "for n-grams, and 'top_k', for top_k.txt": "for n-grams, and 'top_k', for top_k.txt",
    }
    assert {text: terminal.in_options(text) for text in said} == said
