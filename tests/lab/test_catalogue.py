"""The catalogue, and the contract of the analyses: what each file in the lab that measures must have, read from its text."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType

import pytest

import fishpaw
from fishpaw.errors import ConfigError
from fishpaw.lab.catalogue import entries, load, with_full
from fishpaw.lab.findings import Words

FOLDER = Path(fishpaw.__file__).parent / "lab"
ANALYSES = [path for path in sorted(FOLDER.glob("*.py")) if re.search(r"^def measure\(", path.read_text(encoding="utf-8"), re.M)]
QUICK = "def measure(*, seed=0):\n    return Found((Row(Words('a', 'b'), 1.0, 1.0 + seed),))\ndef draw(figure, series):\n    pass\n"
FULL = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Size:\n    steps: int = 3\n" \
    "def full(keep, *, seed=0, data=None, tell, size=Size()):\n    return measure(seed=seed)\n"
PLAIN = {"float", "int", "round", "abs", "sum", "min", "max", "len", "math", "sqrt", "log", "exp", "list", "range"}


def faults(source: str) -> Iterator[str]:
    """What breaks the contract in an analysis, as far as its text says."""
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if len(ast.get_docstring(tree) or "") < 80:
        yield "the docstring says what is measured again"
    for name, expected in (("measure", "*, seed: int=0"), ("draw", "figure: Figure, series: Mapping[str, Any]"),
                           ("full", "keep: Path, *, seed: int=0, data: Path | None=None, tell: Callable[[str], None], size: Size")):
        found = functions.get(name)
        if found is None and name != "full":
            yield f"no {name}"
        elif found is not None and ast.unparse(found.args).removesuffix("=Size()").removesuffix("=USUAL") != expected:
            yield f"{name}({ast.unparse(found.args)}), not ({expected})"
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and "matplotlib" in ast.unparse(node):
            yield "matplotlib is imported at once"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import) and "pyplot" in ast.unparse(node):
            yield "pyplot opens windows"
    yield from literals(tree)


def literals(tree: ast.Module) -> Iterator[str]:
    """Rows whose measured value is no computation: no name in it but those of plain functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Row", "sampled"):
            given = {word.arg: word.value for word in node.keywords}
            measured = given.get("measured", given.get("samples", node.args[2] if len(node.args) > 2 else None))
            if measured is None or not {one.id for one in ast.walk(measured) if isinstance(one, ast.Name)} - PLAIN:
                yield f"line {node.lineno}: what is measured is written down"


def test_there_are_analyses():
    assert ANALYSES and [path.stem for path in ANALYSES] == [entry.name for entry in entries()]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_no_file_of_the_lab_writes_down_what_is_measured(path):
    assert not list(literals(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", ANALYSES, ids=lambda path: path.stem)
def test_each_analysis_keeps_the_contract(path):
    assert not list(faults(path.read_text(encoding="utf-8")))
    analysis = load(path.stem)
    title, source = analysis.entry.title, analysis.entry.source
    assert isinstance(title, Words) and title.en.isprintable() and title.zh.isprintable() and title.en != title.zh
    assert not re.search("[一-鿿]", title.en) and re.search("[一-鿿]", title.zh), title
    assert re.fullmatch(r"https://(kexue\.fm/archives/\d+|arxiv\.org/abs/\d{4}\.\d{5})", source), source
    assert inspect.signature(analysis.measure).parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY
    if analysis.full is not None:
        assert is_dataclass(analysis.size) and not isinstance(analysis.size, type) and fields(analysis.size)
        assert type(analysis.size).__dataclass_params__.frozen and type(analysis.size)() == analysis.size


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_documents_example_keeps_the_contract(plant, language):
    page = (Path(__file__).parents[2] / "docs" / language / "lab.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert not list(faults(example))
    plant(example=example)
    assert [row.verdict for row in load("example").measure().rows] == ["holds", "open"]


def misprints(source: str) -> Iterator[str]:
    """Chinese of Words(…) with a half-width mark beside a wide character, or a formula in wide brackets."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Words" and len(node.args) == 2:
            parts = node.args[1].values if isinstance(node.args[1], ast.JoinedStr) else [node.args[1]]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "甲" for part in parts)
            if re.search("[一-鿿）]\\s?[,:;!?]|[,:;?]\\s?[一-鿿（]|（[^一-鿿（）]*）[ ²(]|）（", text):
                yield f"line {node.lineno}: {text}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_chinese_has_its_own_marks(path):
    assert not list(misprints(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("chinese", ["某层:最小", "小网络,反向", "负号; 另", "时（φ−1）²守恒", "位置（i, j） 与", "f'n = {n}:最小'"])
def test_a_planted_misprint_is_found(chinese):
    literal = chinese if chinese.startswith("f'") else repr(chinese)
    assert list(misprints(f"Words('x', {literal})")) and not list(misprints("Words('x', '某层（fp32）：最小，即 |W|(1 - x)²')"))


GOOD = (
    '"""What x is measured again: the number of things that there are, from kexue.fm/archives/1, which has it right in all its parts."""\n'
    "def measure(*, seed: int = 0) -> Found:\n    found = count()\n    return Found((Row(Words('a', 'b'), 1.0, found),))\n"
    "def draw(figure: Figure, series: Mapping[str, Any]) -> None:\n    pass\n"
)


@pytest.mark.parametrize(
    ("written", "instead", "says"),
    [("1.0, found)", "1.0, 1.0)", "written down"), ("1.0, found)", "1.0, -1.0)", "written down"),
     ("1.0, found)", "1.0, measured=1.0)", "written down"), ("1.0, found)", "1.0, math.sqrt(2))", "written down"),
     ("Row(Words('a', 'b'), 1.0, found)", "sampled(Words('a', 'b'), 1.0, [1.0, 2.0])", "written down"),
     ("seed: int = 0", "seed: int = 1", "measure("), ("*, seed", "seed", "measure("), ("def draw", "def show", "no draw"),
     ("the number of things that there are, from kexue.fm/archives/1, ", "", "says what"),
     ("def measure", "import matplotlib\ndef measure", "at once"),
     ("    pass", "    import matplotlib.pyplot", "pyplot"), ("def draw", "def full(keep):\n    pass\ndef draw", "full(keep)")],
)  # fmt: skip
def test_a_planted_fault_is_found(written, instead, says):
    assert not list(faults(GOOD)) and written in GOOD
    assert any(says in fault for fault in faults(GOOD.replace(written, instead)))


def test_entries_are_read_and_not_run(plant):
    plant(only=True, whole=QUICK + FULL + "raise SystemExit(9)\n", quick=QUICK, aside="x = 1\n")
    whole, quick = sorted(entries(), key=lambda entry: entry.name, reverse=True)
    assert (whole.name, whole.full, quick.name, quick.full) == ("whole", True, "quick", False)
    assert (quick.title, quick.source) == (Words("Planted", "种下的"), "https://kexue.fm/archives/1")
    assert with_full() == ["whole"]


def test_an_analysis_is_loaded(plant):
    plant(whole=QUICK + FULL, quick=QUICK)
    quick, whole = load("quick"), load("whole")
    assert quick.measure(seed=2).rows[0].measured == 3.0 and quick.full is None and quick.size is None
    assert whole.full is not None and whole.size.steps == 3
    assert isinstance(whole.draw, FunctionType)


def test_an_unknown_name_is_told_the_nearest(plant):
    plant(mitchel_arithmetic_=QUICK)
    with pytest.raises(ConfigError, match="no analysis 'mitchel_aritmetic_'.*Did you mean 'mitchel_arithmetic_'"):
        load("mitchel_aritmetic_")
    for name in ("findings", "../findings", "", "catalogue"):
        with pytest.raises(ConfigError, match="There is no analysis"):
            load(name)


@pytest.mark.parametrize(
    ("written", "instead"),
    [('TITLE = Words("Planted", "种下的")', "TITLE = 'Planted'"), ('"Planted"', "'a' + made"), ('"种下的")', "'b', 'c')"),
     ('SOURCE = "https://kexue.fm/archives/1"', ""), ("TITLE", "NAME")],
)  # fmt: skip
def test_a_title_that_cannot_be_read_is_told(plant, written, instead):
    folder = plant(only=True, broken=QUICK)
    file = folder / "broken.py"
    text = file.read_text(encoding="utf-8")
    assert written in text
    file.write_text(text.replace(written, instead), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.py: TITLE and SOURCE"):
        entries()


def test_listing_imports_neither_torch_nor_matplotlib():
    code = "import sys\nfrom fishpaw.lab.catalogue import entries\nassert entries()\n" \
        "assert not {'torch', 'numpy', 'matplotlib'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(FOLDER.parents[1])})  # fmt: skip
    assert done.returncode == 0, done.stderr
