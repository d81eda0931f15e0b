"""The verb lab, on planted analyses: listing, quick and full forms, records, the report, and each mistake in one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fishpaw
import fishpaw.lab
from fishpaw.cli import program
from fishpaw.cli.lab import lab
from fishpaw.lab import drawing, records, running
from fishpaw.lab.running import in_full

HEAD = '''"""A planted analysis."""
import json
import os
from dataclasses import dataclass
from fishpaw.files import write_atomic
from fishpaw.lab.findings import Found, Row, Words, sampled
TITLE = Words("A <planted> title", "一个标题")
SOURCE = "https://kexue.fm/archives/1"
'''
QUICK = '''
def measure(*, seed=0):
    return Found((Row(Words("the sum", "和是"), 3.0, 1.0 + VALUE),), {"x": [1.0, 2.0 + seed]})

def draw(figure, series):
    figure.subplots().plot(series["x"])
'''
FULL = '''
@dataclass(frozen=True)
class Size:
    parts: int = 3

def full(keep, *, seed=0, data=None, tell, size=Size()):
    for part in range(size.parts):
        if not (keep / f"{part}.json").exists():
            tell(f"part {part} of {data}")
            write_atomic(keep / f"{part}.json", "1")
    return Found((sampled(Words("a mean", "均值"), 2.0, [1.5, 2.5, 2.1 + seed]),), {"x": [0.0, float(size.parts)]})
'''
STOPPED = FULL.replace("            tell", "            if part == 2:\n                raise KeyboardInterrupt\n            tell")
RIGHT, WRONG = QUICK.replace("VALUE", "2.0"), QUICK.replace("VALUE", "2.5")
RAISES = QUICK.replace("1.0 + VALUE", "1 / (seed - seed)")
UNDRAWN = RIGHT.replace('series["x"]', 'series["y"]')


@pytest.fixture(autouse=True)
def verb():
    """The program has it, whoever registers it."""
    if not any(command.callback is lab for command in program.app.registered_commands):
        program.app.command()(lab)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """planted(name=source, …): these and no others are the analyses, and tmp_path/checkout/docs/lab holds the records."""
    named: list[str] = []

    def put(**sources: str) -> Path:
        (folder := tmp_path / "planted").mkdir(exist_ok=True)
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(HEAD + source, encoding="utf-8")
            named.append(name)
        monkeypatch.setattr(fishpaw.lab, "__path__", [str(folder)])
        monkeypatch.setattr(records, "__file__", str(tmp_path / "checkout" / "src" / "fishpaw" / "lab" / "records.py"))
        return tmp_path

    monkeypatch.delenv("FISHPAW_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for module in ("drawing", "report", "running", "table", "catalogue"):
        import_module(f"fishpaw.lab.{module}")                         # before the path hides them
    yield put
    for name in named:
        sys.modules.pop(f"fishpaw.lab.{name}", None)
        vars(fishpaw.lab).pop(name, None)


def keep_a_record(folder: Path, name: str) -> None:
    in_full(name, folder / "run", tell=str)
    (folder / "checkout" / "docs" / "lab").mkdir(parents=True, exist_ok=True)
    (folder / "checkout" / "docs" / "lab" / f"{name}.json").write_bytes((folder / "run" / "record.json").read_bytes())


def test_the_list_says_what_each_has(fishpaw_, planted):
    folder = planted(large=RIGHT + FULL, small=RIGHT)
    keep_a_record(folder, "large")
    done = fishpaw_("lab")
    assert done.code == 0 and done.lines == ["large  +*  A <planted> title", "small      A <planted> title"] and "--full" in done.err
    assert fishpaw_("lab", "--lang", "zh").lines[0] == "large  +*  一个标题"
    one, two = fishpaw_("lab", "--json").objects
    assert (one["name"], one["full"], one["recorded"], two["full"], two["recorded"]) == ("large", True, True, False, False)
    assert one["title"] == {"en": "A <planted> title", "zh": "一个标题"} and one["source"].endswith("/1")


def test_a_quick_form_is_a_table(fishpaw_, planted):
    planted(small=RIGHT)
    done = fishpaw_("lab", "small")
    assert done.code == 0 and not done.err
    assert done.lines == ["A <planted> title  https://kexue.fm/archives/1", "", "claim    claimed  measured  verdict",
                          "the sum  3        3         holds"]  # fmt: skip
    assert fishpaw_("lab", "small", "--lang", "zh").lines[2:] == ["论断  应为  实测  结论", "和是  3     3     成立"]
    (one,) = fishpaw_("lab", "small", "--json", "--seed", 5).objects
    assert one["measured"]["seed"] == 5 and one["recorded"] is None and one["error"] is None
    assert one["measured"]["rows"] == [{"claim": {"en": "the sum", "zh": "和是"}, "claimed": 3.0, "measured": 3.0, "relation": "=",
                                        "within": 0.0, "interval": None, "kind": "mathematical", "verdict": "holds"}]  # fmt: skip


def test_out_gets_figures_and_a_record(fishpaw_, planted):
    pytest.importorskip("matplotlib")
    folder = planted(small=RIGHT)
    assert fishpaw_("lab", "small", "--out", folder / "deep" / "out").code == 0
    names = sorted(path.name for path in (folder / "deep" / "out").iterdir())
    assert names == ["small.json", "small.png", "small.svg"]
    assert records.read(folder / "deep" / "out" / "small.json").series == {"x": [1.0, 2.0]}


def test_a_mathematical_row_that_fails_is_exit_code_1_and_named(fishpaw_, planted):
    planted(small=WRONG)
    done = fishpaw_("lab", "small")
    assert done.code == 1 and done.err == "fishpaw: what must hold doesn't: small: the sum.\n"
    assert done.lines[-1].endswith("3.5       fails")


def test_a_full_form_goes_on_where_it_was_stopped(fishpaw_, planted):
    pytest.importorskip("matplotlib")
    folder = planted(large=RIGHT + FULL, stopped=RIGHT + STOPPED)
    done = fishpaw_("lab", "stopped", "--full")
    assert done.code == 130 and "goes on from here" in done.err and not done.out
    assert sorted(path.name for path in (folder / "runs" / "lab" / "stopped" / "parts").iterdir()) == ["0.json", "1.json"]
    done = fishpaw_("lab", "large", "--full")
    out = folder / "runs" / "lab" / "large"
    assert done.code == 0 and {path.name for path in out.iterdir()} == {"parts", "settings.json", "record.json", "large.png", "large.svg"}
    assert "part 2 of None" in done.err and str(Path("runs/lab/large/record.json")) in done.err
    assert done.lines[2].startswith("recorded 20") and "parts 3" in done.lines[2] and done.lines[4].startswith("a mean")
    again = fishpaw_("lab", "large", "--full")
    assert again.code == 0 and "part" not in again.err.replace("parts", "") and again.lines[4] == done.lines[4]
    (one,) = fishpaw_("lab", "large", "--full", "--json").objects
    assert one["measured"]["size"] == {"parts": 3} and one["measured"]["rows"][0]["kind"] == "empirical"


def test_the_data_folder_is_the_one_named_or_the_environment_s(fishpaw_, planted, monkeypatch):
    pytest.importorskip("matplotlib")
    folder = planted(large=RIGHT + FULL)
    assert f"part 0 of {folder / 'a'}" in fishpaw_("lab", "large", "--full", "--data", folder / "a", "--out", "one").err
    monkeypatch.setenv("FISHPAW_DATA", str(folder / "b"))
    assert f"part 0 of {folder / 'b'}" in fishpaw_("lab", "large", "--full", "--out", "two").err


def test_the_record_that_comes_with_fishpaw_is_shown_behind(fishpaw_, planted):
    pytest.importorskip("matplotlib")
    folder = planted(large=RIGHT + FULL)
    keep_a_record(folder, "large")
    lines = fishpaw_("lab", "large").lines
    assert lines[3].startswith("the sum") and lines[4] == "" and lines[7].startswith("a mean")
    assert re.match(r"recorded 20\d\d-\d\d-\d\d: seed 0, parts 3; fishpaw .*, python .*, torch .*, numpy .*; .+; 0 s", lines[5])
    (one,) = fishpaw_("lab", "large", "--json").objects
    assert one["recorded"]["rows"][0]["verdict"] == "open" and one["measured"]["size"] == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [("lab nothing", "no analysis 'nothing'.*Known: large, small"), ("lab --full", "without an analysis.*large"),
     ("lab all --full", "without an analysis.*large"), ("lab small --full", "small has no full form.*large"),
     ("lab small --data x", "--data is given without --full"), ("lab all --data x", "--data is given without --full"),
     ("lab --out x", "--out is given without"), ("lab small --out planted/small.py", "is a file, not a folder"),
     ("lab small --lang fr", "--lang"), ("lab small --seed -1", "--seed"),
     ("lab large --full --out run --seed 1", "a run of seed 0, not 1")],
)  # fmt: skip
def test_mistakes_are_one_sentence(fishpaw_, planted, refused, words, says):
    pytest.importorskip("matplotlib")
    folder = planted(large=RIGHT + FULL, small=RIGHT)
    in_full("large", folder / "run", tell=str)
    refused(fishpaw_(*words.split()), says)


@pytest.mark.parametrize("words", ["lab small --out x", "lab large --full", "lab all"])
def test_without_matplotlib_figures_are_refused_before_anything_runs(fishpaw_, planted, refused, monkeypatch, words):
    folder = planted(large=RAISES + FULL, small=RAISES)
    find_spec = drawing.importlib.util.find_spec
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest))
    refused(fishpaw_(*words.split()), r"pip install 'fishpaw\[plot\]'")
    assert not (folder / "runs").exists() and not (folder / "x").exists()


def test_without_matplotlib_a_table_is_still_a_table(fishpaw_, planted, monkeypatch):
    planted(small=RIGHT)
    find_spec = drawing.importlib.util.find_spec
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest))
    assert fishpaw_("lab", "small").code == 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody may make one")
def test_a_report_that_can_not_be_written_is_told_before_anything_is_measured(fishpaw_, refused, planted, monkeypatch):
    pytest.importorskip("matplotlib")
    planted(small=RIGHT)
    monkeypatch.setattr(running, "at_once", lambda *given, **options: pytest.fail("it was measured"))
    refused(fishpaw_("lab", "all", "--out", "/proc/here"), "/proc/here/report.html: can't be written")


def test_the_report_of_all(fishpaw_, planted):
    pytest.importorskip("matplotlib")
    folder = planted(large=RIGHT + FULL, small=RIGHT)
    keep_a_record(folder, "large")
    done = fishpaw_("lab", "all")
    path = folder / "runs" / "lab" / "report.html"
    assert done.code == 0 and done.out == f"{Path('runs/lab/report.html')}\n" and not done.err
    text = path.read_text(encoding="utf-8")
    assert text.count("<img ") == 3 and "A &lt;planted&gt; title" in text and "<planted>" not in text and "recorded full form" in text
    done = fishpaw_("lab", "all", "--json", "--lang", "zh", "--out", "zh")
    assert [one["name"] for one in done.objects] == ["large", "small"] and done.objects[0]["recorded"]["size"] == {"parts": 3}
    assert "一个标题" in (folder / "zh" / "report.html").read_text(encoding="utf-8")


def test_what_fails_raises_or_is_not_drawn_is_in_the_report_and_in_the_exit_code(fishpaw_, planted):
    pytest.importorskip("matplotlib")
    folder = planted(a=RAISES, b=WRONG, c=UNDRAWN, d=RIGHT, e="import nopackage\n" + RIGHT)
    done = fishpaw_("lab", "all", "--json")
    assert done.code == 1 and [one["name"] for one in done.objects] == list("abcde")
    assert [one["error"] for one in done.objects] == ["ZeroDivisionError: division by zero", None, "KeyError: 'y'", None,
                                                      "ModuleNotFoundError: No module named 'nopackage'"]  # fmt: skip
    assert [one["measured"] is None for one in done.objects] == [True, False, False, False, True]
    said = done.err.splitlines()[-1]
    assert all(part in said for part in ("a: not measured", "b: the sum", "c: not drawn", "e: not measured")) and "; d:" not in said
    text = (folder / "runs" / "lab" / "report.html").read_text(encoding="utf-8")
    assert "division by zero" in text and text.count("<img ") == 2


def test_a_record_that_is_not_drawn_leaves_the_quick_form_its_figure(fishpaw_, planted):
    pytest.importorskip("matplotlib")
    folder = planted(large=RIGHT + FULL)
    keep_a_record(folder, "large")
    path = folder / "checkout" / "docs" / "lab" / "large.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "series": {}}), encoding="utf-8")
    done = fishpaw_("lab", "all")
    assert done.code == 1 and "large: not drawn (KeyError: 'x')" in done.err
    assert (folder / "runs" / "lab" / "report.html").read_text(encoding="utf-8").count("<img ") == 1


def test_ctrl_c_ends_the_report_and_writes_none(fishpaw_, planted):
    pytest.importorskip("matplotlib")
    folder = planted(a=RIGHT.replace("    return", "    raise KeyboardInterrupt\n    return", 1))
    done = fishpaw_("lab", "all")
    assert done.code == 130 and not [path for path in (folder / "runs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", ["lab large", "lab all"])
def test_a_damaged_record_is_told_before_anything_runs(fishpaw_, planted, refused, words):
    pytest.importorskip("matplotlib")
    folder = planted(large=RAISES + FULL)
    keep_a_record(folder, "large")
    path = folder / "checkout" / "docs" / "lab" / "large.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["rows"][0]["measured"]
    path.write_text(json.dumps(content), encoding="utf-8")
    refused(fishpaw_(*words.split()), r"large\.json: rows\[0\] has no field measured")


def test_the_verb_and_its_list_import_neither_torch_nor_matplotlib():
    code = "\n".join(["import contextlib, io, sys", "from fishpaw.cli.lab import Language, lab",
                      "with contextlib.redirect_stdout(io.StringIO()) as said:",
                      "    lab(None, full=False, data=None, out=None, lang=Language.EN, seed=0, as_json=True)",
                      "assert said.getvalue().count('\\n') > 3", "assert not {'torch', 'numpy', 'matplotlib'} & {*sys.modules}"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])})  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_documents_quote_what_is_printed(fishpaw_, monkeypatch, language):
    monkeypatch.setenv("COLUMNS", "140")                              # what a pipe gets
    page = (Path(__file__).parents[2] / "docs" / language / "lab.md").read_text(encoding="utf-8")
    quoted = re.search(r"^\$ fishpaw (lab squareplus.*) \| head -6\n(.*?)```", page, re.M | re.S)
    assert quoted and fishpaw_(*quoted[1].split()).out.splitlines()[:6] == quoted[2].splitlines()


def test_a_vocabulary_gets_its_dimension_and_nothing_else_is_measured(fishpaw_):
    done = fishpaw_("lab", "embedding_dimension", "--vocab", 10_000)
    assert done.code == 0 and done.out.split() == ["dimension", "77"]
    alone = ("lab", "embedding_dimension", "--vocab", 9)
    for words in (("lab", "squareplus", "--vocab", 9), ("lab", "embedding_dimension", "--vocab", 1), ("lab", "--vocab", 9),
                  (*alone, "--full"), (*alone, "--out", "x"), (*alone, "--data", "x"), (*alone, "--seed", 1),
                  (*alone, "--lang", "zh")):  # fmt: skip
        done = fishpaw_(*words)
        assert done.code == 2 and done.err.count("\n") == 1 and not done.out, done
        assert "--vocab" in done.err
