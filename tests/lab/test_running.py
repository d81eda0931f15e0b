"""Running: the quick form, and a full form that is stopped, goes on, and mixes with nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import pytest

from fishpaw import files
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.lab import running
from fishpaw.lab.records import read
from fishpaw.lab.running import at_once, in_full

SOURCE = '''
import json
from dataclasses import dataclass
from fishpaw.errors import DataError
from fishpaw.files import write_atomic

@dataclass(frozen=True)
class Size:
    parts: int = 5

def measure(*, seed=0):
    return Found((Row(Words("a", "b"), 3.0, 3.0 * (seed + 1)),), {"x": [seed]})

def draw(figure, series):
    figure.subplots().plot(series["x"])

def full(keep, *, seed=0, data=None, tell, size=Size()):
    if data is not None and not data.exists():
        raise DataError(f"{data}: no such folder.", fix="Give one.")
    found = []
    for part in range(size.parts):
        path = keep / f"{part}.json"
        if not path.exists():
            tell(f"part {part}")
            write_atomic(path, json.dumps(part * (seed + 1)))
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return Found((sampled(Words("a", "b"), 2.0 * (seed + 1), found),), {"x": found})
'''


@dataclass(frozen=True)
class Size:
    parts: int = 5


@pytest.fixture
def out(plant, tmp_path):
    plant(planted=SOURCE, quick=SOURCE.replace("def full", "def none"))
    return tmp_path / "out"


def quiet(line: str) -> None:
    pass


def test_the_quick_form(out):
    record = at_once("planted", seed=2)
    assert (record.name, record.seed, record.size, record.series) == ("planted", 2, {}, {"x": [2]})
    assert record.rows[0].measured == 9.0 and record.seconds >= 0
    with pytest.raises(ConfigError, match="no analysis 'plantde'"):
        at_once("plantde")


def test_the_full_form_leaves_parts_settings_and_a_record(out):
    told: list[str] = []
    record = in_full("planted", out, tell=told.append, seed=1)
    assert read(out / "record.json") == record and record.size == {"parts": 5} and record.series == {"x": [0, 2, 4, 6, 8]}
    assert told == [f"part {part}" for part in range(5)] and len(list((out / "parts").iterdir())) == 5
    again = in_full("planted", out, tell=told.append, seed=1)
    assert told[5:] == [f"finished before: {out / 'record.json'}"] and again == record       # date and versions, too


def test_a_stopped_run_goes_on_to_the_same_end(out, tmp_path):
    def stop(line: str) -> None:
        told.append(line)
        if line == "part 3":
            raise KeyboardInterrupt

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        in_full("planted", out, tell=stop)
    assert not (out / "record.json").exists() and len(list((out / "parts").iterdir())) == 3
    held = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    (out / "settings.json").write_text(json.dumps({**held, "seconds": 100.0}), encoding="utf-8")
    resumed = in_full("planted", out, tell=told.append)
    whole = in_full("planted", tmp_path / "other", tell=quiet)
    assert told == ["part 0", "part 1", "part 2", "part 3", "part 3", "part 4"]
    assert (resumed.rows, resumed.series) == (whole.rows, whole.series)
    assert 100 <= resumed.seconds < 160                                # what it took before counts, too


@pytest.mark.parametrize(
    ("change", "says"),
    [({"seed": 1}, "a run of seed 0, not 1"), ({"size": Size(7)}, "a run of size parts 5, not parts 7"),
     ({"version": "9.9"}, r"a run of fishpaw .*, not 9\.9"), ({"name": "other"}, "a run of name planted, not other")],
)  # fmt: skip
def test_runs_do_not_mix(out, plant, monkeypatch, change, says):
    plant(other=SOURCE)
    in_full("planted", out, tell=quiet)
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    monkeypatch.setattr(running, "__version__", change.pop("version", running.__version__))
    with pytest.raises(ConfigError, match=says):
        in_full(change.pop("name", "planted"), out, tell=quiet, **change)
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before
    if "size" in change:                                               # planted: elsewhere the same is no mistake
        in_full("planted", out.with_name("new"), tell=quiet, **change)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "planted", "seed": 0, "size": {}, "fishpaw": "x", "seconds": null}'])
def test_damaged_settings_are_told(out, content):
    out.mkdir()
    (out / "settings.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"settings\.json: can't be read"):
        in_full("planted", out, tell=quiet)


def test_parts_without_settings_are_nobody_s(out):
    in_full("planted", out, tell=quiet)
    (out / "settings.json").unlink()
    with pytest.raises(DataError, match=r"settings\.json: is missing"):
        in_full("planted", out, tell=quiet)


def test_an_analysis_without_a_full_form_is_told_which_have_one(out):
    with pytest.raises(ConfigError, match="quick has no full form.*planted"):
        in_full("quick", out, tell=quiet)
    assert not out.exists()


def test_missing_data_is_the_analysis_s_to_tell(out, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        in_full("planted", out, tell=quiet, data=tmp_path / "nowhere")
    assert not [*out.rglob("*.json")] and not (out / "parts").exists()
    assert len(in_full("planted", out, tell=quiet, seed=5).rows) == 1  # and the folder can be used, with another seed, too


def test_a_record_of_another_run_is_not_taken_for_this_one(out):
    in_full("planted", out, tell=quiet)
    (out / "settings.json").unlink()
    shutil.rmtree(out / "parts")
    with pytest.raises(DataError, match=r"record\.json: of another run"):
        in_full("planted", out, tell=quiet, seed=5)


def test_one_process_at_a_time(out):
    out.parent.mkdir(exist_ok=True)
    with files.lock(out), pytest.raises(FishpawError, match="is writing there"):
        in_full("planted", out, tell=quiet)
