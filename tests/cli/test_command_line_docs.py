"""docs/*/command_line.md: every verb, every field of --json that a small run prints, and every pair of options that is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fishpaw.cli.program import app
from fishpaw.weights import onnx

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {language: (DOCS / language / "command_line.md").read_text(encoding="utf-8") for language in ("en", "zh")}
SMALL = ["--model", "new", "--change", "layers=1", "--change", "hidden_size=16", "--change", "intermediate_size=16", "--steps", 1]
RUNS = {                                                               # what is typed; M/ is the folder of models, F/ that of files
    "demo": "demo --steps 1 --out F/demo", "doctor": "doctor", "fill": "fill -m M/bert 今[MASK]", "score": "score -m M/bert 今天",
    "generate": "generate -m M/bert --mask causal --max-new 2 今",
    "generate --choices": "generate -m M/bert --mask causal --choices 天,气 今",
    "chat": "chat -m M/bert --max-new 2 --data F/turns.txt", "predict classify": "predict classify -m M/task 今",
    "predict seq2seq": "predict seq2seq -m M/bert --max-new 2 今", "evaluate classify": "evaluate classify -m M/task -d F/dev.tsv",
    "evaluate seq2seq": "evaluate seq2seq -m M/bert --max-new 3 -d F/pairs.tsv",
    "evaluate dialogue": "evaluate dialogue -m M/bert --max-new 2 --samples 2 -d F/pairs.tsv",
    "train classify": "train classify -d F/dev.tsv -o F/one", "train seq2seq": "train seq2seq -d F/pairs.tsv -o F/two --max-new 3",
    "train dialogue": "train dialogue -d F/pairs.tsv -o F/three", "convert": "convert M/bert F/four",
    "export onnx": "export onnx M/bert F/five", "shuffle": "shuffle F/dev.tsv -o F/six --memory 8G",
    "segment": "segment -m M/bert 今天", "parse": "parse -m M/bert 今天", "explain": "explain -m M/task 今", "lab": "lab squareplus",
    "explain --by-examples": "explain -m M/task --by-examples F/dev.tsv 今",
    "pretrain": "pretrain -d F/dev.tsv -o F/seven --size 1x16 --length 16 --steps 1",
}  # fmt: skip
REFUSED = [                                                            # what is typed, and the options that its row names
    ("generate -m M/gpt2 今 --data x.txt", "--data"), ("generate -m x 今 --sample --beams 2", "--sample --beams"),
    ("generate -m x 今 --sample --contrastive-k 2", "--sample --contrastive-k"),
    ("generate -m x 今 --beams 2 --contrastive-k 2", "--beams --contrastive-k"),
    ("generate -m x 今 --consistent --sample", "--consistent --top-k --top-p"),
    *((f"generate -m x 今 --{name} 1", f"--{name} --sample")
      for name in ("temperature", "top-k", "top-p", "min-p", "typical", "eta", "epsilon")),
    ("generate -m x 今 --n 2", "--n --sample --beams"), ("generate -m x 今 --length-penalty 1", "--length-penalty --beams"),
    ("generate -m x 今 --contrastive-alpha 0.5", "--contrastive-alpha --contrastive-k"),
    ("predict seq2seq -m x 今 --length-penalty 1", "--length-penalty --beams"),
    ("evaluate seq2seq -m x -d y --length-penalty 1", "--length-penalty --beams"),
    ("chat -m x --data F/turns.txt --length-penalty 1", "--length-penalty --beams"),
    ("chat -m x --data F/turns.txt --contrastive-alpha 0.5", "--contrastive-alpha --contrastive-k"),
    *((f"generate -m x 今 --stream {other}", f"--stream {other.split()[0]}") for other in ("--beams 2", "--n 2", "--json")),
    *((f"generate -m x 今 --choices 天,气 {other}", f"--choices {other.split()[0]}")
      for other in ("--stop 今", "--loop-stop", "--regex 今", "--stream")),
    *((f"generate -m x 今 --choices 天,气 {other}", "--choices") for other in ("--max-new 3", "--min-new 1", "--sample", "--beams 2")),
    ("generate -m x 今 --calibrate sum", "--calibrate --choices"),
    ("generate -m x 今 --choices 天,气 --calibrate contextual", "--calibrate --shots"),
    *((f"chat -m x --data F/turns.txt --beams 2 --{name} 1", f"--beams --{name}")
      for name in ("rerank", "temperature", "top-k", "top-p", "min-p")),
    ("chat -m x --data F/turns.txt --contrastive-k 2 --beams 2", "--contrastive-k --beams"),
    ("chat -m x --data F/turns.txt --contrastive-k 2 --rerank 2", "--contrastive-k --rerank"),
    ("chat -m x --data F/turns.txt --backward y", "--backward --rerank"),
    *((f"train {task} -d - --dev - -o F/out", "--data --dev") for task in ("classify", "seq2seq", "dialogue")),
    *((f"train {task} -d x -o F/out -m new --family bert", "--family --model") for task in ("classify", "seq2seq", "dialogue")),
    ("segment -m x 今天 --valley --threshold 1", "--valley --threshold"),
    ("parse -m x 今天 --tree dependency --objective code", "--objective --tree"),
    ("parse -m x 今天 --tree constituency --root 1", "--root --tree"),
    ("parse -m x 今天 --tree constituency --algorithm eisner", "--algorithm --tree"),
    ("explain -m M/task 今 --method input --points 3", "--points --method"),
    ("explain -m M/task 今 --method expected --baseline pad", "--baseline --method"),
    ("explain -m M/task 今 --path x", "--path --by-examples"),
    ("explain -m M/task 今 --by-examples x --points 3", "--by-examples --points"),
    ("explain -m M/task --by-examples -", "--by-examples --data"),
    ("explain -m M/task 今 --method complete --points 3", "--method --points"),
    *((f"train classify -d x -o F/out --keep-path 2 {other}", f"--keep-path {other.split()[0]}") for other in (
        "--dev y", "--accumulate 2", "--weight-decay 0", "--precision bf16", "--evaluate-every 1", "--patience 1", "--restart")),
    ("lab --full", "--full"), ("lab --out F/out", "--out"), ("lab squareplus --data x", "--data --full"),
    ("train seq2seq -d x -o F/out --monitor rouge", "--monitor --dev"), ("pretrain -d - --dev - -o F/out", "--data --dev"),
    ("pretrain -d x -o F/out --vocab y -m z", "--vocab --model"), ("pretrain -d x -o F/out --tokens 9 --steps 9", "--tokens --steps"),
    ("shuffle x -o - --json", "--out --json"), ("shuffle x -o F/out --engine ray --temp F", "--engine --temp"),
    ("shuffle x -o F/out --engine ray --bytes-per-file 9", "--engine --bytes-per-file"),
]  # fmt: skip


def rows(page: str) -> list[list[str]]:
    """The cells of each row of each table."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("| ")]


def row_of(page: str, verb: str) -> list[str]:
    """The row of the first table that is about this verb."""
    (found,) = [row for row in rows(page) if len(row) == 4 and f"`{verb}`" in row[0]]
    return found


def names(value: Any) -> Iterator[str]:
    """The names in an object, and in the objects that its lists hold."""
    for name, inner in value.items():
        yield name
        for one in inner if isinstance(inner, list) else []:
            if isinstance(one, dict):
                yield from names(one)


def verbs() -> Iterator[str]:
    yield from (one.name or one.callback.__name__ for one in app.registered_commands)
    for group in app.registered_groups:
        yield from (f"{group.name} {one.name}" for one in group.typer_instance.registered_commands)


@pytest.fixture
def typed(fishpaw_, models, files):
    """typed("what is typed", …) -> Done"""
    files("turns.txt", "今\n")
    files("pairs.tsv", "今\t天\n天\t气\n气\t我\n")

    def run(words: str, *more: object):
        found = [re.sub("^[MF]/", lambda one: f"{models if one[0] == 'M/' else files.folder}/", word) for word in words.split()]
        return fishpaw_(*found, *more)

    return run


@pytest.mark.parametrize("language", PAGES)
def test_every_verb_has_a_row_and_every_row_a_verb(language):
    told = [name for row in rows(PAGES[language]) if len(row) == 4 for name in re.findall("`([^`]+)`", row[0])]
    assert sorted(told) == sorted([*verbs(), "generate --choices", "explain --by-examples"])


@pytest.mark.parametrize("verb", RUNS)
def test_every_field_of_json_is_in_the_row_of_its_verb(typed, verb, monkeypatch):
    made = SimpleNamespace(file="x", size=1, inputs=[], outputs=[], difference=0.0, cosine=1.0, least_cosine=1.0)
    monkeypatch.delenv("FISHPAW_DATA", raising=False)                  # the demo then has few reviews to read
    monkeypatch.setattr(onnx, "require", lambda: None)                 # a real one takes seconds: tests/weights/test_onnx.py
    monkeypatch.setattr(onnx, "export", lambda model, out, tokenizer: made)
    done = typed(RUNS[verb], *(SMALL if verb.startswith("train") else []), "--json")
    assert done.code == 0, done
    found = sorted({name for one in done.objects for name in names(one)})
    for page in PAGES.values():
        assert sorted(set(re.findall(r"`(\w+)`", row_of(page, verb)[3]))) == found


@pytest.mark.parametrize(("words", "options"), REFUSED)
def test_what_is_refused_together_stands_in_a_row_of_its_verb(typed, words, options):
    done = typed(words)
    assert done.code == 2 and done.err.count("\n") == 1 and not done.out, done
    assert any(option in done.err for option in options.split()), done.err
    first, second = words.split()[:2]
    for page in PAGES.values():
        about = [row[1] for row in rows(page) if len(row) == 2 and re.search(f"`{first}`|`{first} {second}`|TEXT", row[0])]
        assert any(all(re.search(rf"{option}\b", cell) for option in options.split()) for cell in about), options


@pytest.mark.parametrize("language", PAGES)
def test_a_planted_fault_is_found(language):
    page = PAGES[language].replace("`rank` ", "").replace("| `doctor` |", "| `doktor` |")
    assert "rank" not in re.findall(r"`(\w+)`", row_of(page, "score")[3])
    with pytest.raises(ValueError, match="not enough values"):
        row_of(page, "doctor")


@pytest.mark.parametrize("language", PAGES)
def test_the_readme_leads_to_the_page_and_codes_are_there(language):
    readme = DOCS.parent / ("README.md" if language == "en" else "README_zh.md")
    assert f"docs/{language}/command_line.md" in readme.read_text(encoding="utf-8")
    assert [row[0] for row in rows(PAGES[language]) if row[0].isdigit()] == ["0", "1", "2", "3", "130", "143"]
