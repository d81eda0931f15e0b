"""The shuffle on a Ray cluster of two processes gives the files that one process gives. Slow: Ray takes a while to start."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

import fishpaw
from fishpaw.data import shuffle_ray
from fishpaw.data.shuffle import order, shuffle
from fishpaw.data.shuffle_ray import shuffle_on_ray
from fishpaw.errors import ConfigError, DataError

LINES = [b"%d\n" % at * (at % 3 + 1) for at in range(3000)]          # one to three lines each
ALL = [line for lines in LINES for line in lines.splitlines(True)]


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(fishpaw.__file__).parents[1])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield ray
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def write(folder: Path, parts: int, top: bytes = b"") -> list[Path]:
    paths = [folder / f"{at}.txt" for at in range(parts)]
    for at, path in enumerate(paths):
        path.write_bytes(top + b"".join(ALL[at * len(ALL) // parts : (at + 1) * len(ALL) // parts]))
    return paths


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")                                # Ray's own, of its processes and sockets
def test_the_same_files_as_from_one_process(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle_ray, "parted", lambda memory, room: 7)
    paths = write(tmp_path, 5, b"top\n")
    options = {"seed": 3, "header": True, "lines_per_file": 700}
    ours = shuffle_on_ray(paths, tmp_path / "ray", memory=2**34, **options)
    assert ours == shuffle(paths, tmp_path / "one", memory=2**34, **options)
    assert {path.name for path in (tmp_path / "ray").iterdir()} == {part.name for part in ours.files} | {".shuffle.json"}
    for part in ours.files:
        assert (tmp_path / "ray" / part.name).read_bytes() == (tmp_path / "one" / part.name).read_bytes()
    assert shuffle_on_ray(paths, tmp_path / "ray", memory=2**34, **options) == ours
    whole = shuffle_on_ray(paths, tmp_path / "gz", memory=2**34, seed=3, header=True, ending=".txt.gz")
    made = gzip.decompress((tmp_path / "gz" / whole.files[0].name).read_bytes())
    assert made == b"top\n" + b"".join(ALL[at] for at in order(len(ALL), seed=3))
    aligned = shuffle_on_ray(paths[:2], tmp_path / "aligned", memory=2**34, aligned=True)
    assert aligned == shuffle(paths[:2], tmp_path / "two", memory=2**34, aligned=True)
    (tmp_path / "empty").write_bytes(b"")
    assert shuffle_on_ray([tmp_path / "empty"], tmp_path / "none", memory=2**34).files[0].lines == 0
    paths[1].write_bytes(b"top\nfew\n")
    with pytest.raises(DataError, match="1.txt has 2 lines"):
        shuffle_on_ray(paths[:2], tmp_path / "new", memory=2**34, aligned=True)
    paths[1].write_bytes(b"other\nfew\n")
    with pytest.raises(DataError, match="1.txt: its first line"):
        shuffle_on_ray(paths[:2], tmp_path / "new", memory=2**34, header=True)
    assert not (tmp_path / "new" / ".shuffle").exists()


def test_what_ray_can_not_do_is_refused_first(tmp_path, monkeypatch):
    (path,) = write(tmp_path, 1)
    for given, out in ((["-"], tmp_path / "out"), ([path], "-")):
        with pytest.raises(ConfigError, match="see files only"):
            shuffle_on_ray(given, out)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"fishpaw\[ray\]"):
        shuffle_on_ray([path], tmp_path / "out")


def test_a_bucket_is_cut_where_the_files_are(tmp_path, monkeypatch):
    """The tasks themselves, run here one after another."""
    class Here:
        @staticmethod
        def remote(function):
            return type("Task", (), {"remote": staticmethod(function)})

        @staticmethod
        def get(results):
            return results

    monkeypatch.setattr(shuffle_ray, "_started", lambda address: Here)
    monkeypatch.setattr(shuffle_ray, "parted", lambda memory, room: 5)
    paths = write(tmp_path, 3)
    for cut in (None, 1000, len(ALL) // 4, 17):
        found = shuffle_on_ray(paths, tmp_path / f"{cut}", memory=2**34, lines_per_file=cut)
        made = b"".join((tmp_path / f"{cut}" / part.name).read_bytes() for part in found.files)
        assert made == b"".join(ALL[at] for at in order(len(ALL)))
        assert all(part.lines == cut for part in found.files[:-1]) and found.lines == len(ALL)
