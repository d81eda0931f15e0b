"""The whole shuffle: the same order by any memory, nothing lost, killed at many places and gone on with, refused before it writes."""

from __future__ import annotations

import gzip
import os
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy
import pytest

import fishpaw
from fishpaw.data import shuffle as module
from fishpaw.data import shuffle_plan
from fishpaw.data.shuffle import order, shuffle
from fishpaw.data.shuffle_plan import WORK, Room
from fishpaw.errors import ConfigError, DataError, FishpawError

SRC = str(Path(fishpaw.__file__).parents[1])
TINY = (700, 40, 3000)                                               # bytes of a batch, its lines, memory of a bucket


@pytest.fixture(autouse=True)
def a_small_process(monkeypatch):
    """As if Python held 100 MB: what the tests before these left in this process is not what they are about."""
    monkeypatch.setattr(shuffle_plan, "_held", lambda: 100 * 2**20)


@pytest.fixture
def room(monkeypatch):
    """room(batch, lines, bucket): what memory gives, so that small files take all the ways of large ones."""
    return lambda *parts: monkeypatch.setattr(module.Room, "within", staticmethod(lambda memory: Room(*parts)))


def ragged(count: int, seed: int = 0) -> list[bytes]:
    """Lines of any bytes, some of them equal, empty or long."""
    random = numpy.random.default_rng(seed)
    return [random.bytes(int(size)).replace(b"\n", b"\r") + b"\n" for size in random.integers(0, 60, count) * (random.random(count) < 0.9)]


def write(folder: Path, *contents: bytes, names: str = "abcdefgh") -> list[Path]:
    paths = [folder / f"{name}.txt" for name, _ in zip(names, contents, strict=False)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def whole(out: Path, found) -> bytes:
    return b"".join((out / part.name).read_bytes() for part in found.files)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The order

@pytest.mark.parametrize("parts", [TINY, (61, 2, 1500), (10**6, 10**5, 10**6), (5000, 7, 900)], ids=str)
def test_the_same_order_for_any_memory(tmp_path, room, parts):
    lines = ragged(2000)
    paths = write(tmp_path, b"".join(lines[:700]), b"", b"".join(lines[700:])[:-1])
    room(*parts)
    found = shuffle(paths, tmp_path / "out", seed=5)
    assert whole(tmp_path / "out", found) == b"".join(lines[at] for at in order(2000, seed=5))
    assert (found.lines, found.bytes) == (2000, sum(map(len, lines)))
    assert listing(tmp_path / "out") == {"part-00000.txt", ".shuffle.json"} and listing(tmp_path) == {"a.txt", "b.txt", "c.txt", "out"}


def test_equal_lines_and_other_seeds(tmp_path, room):
    room(*TINY)
    paths = write(tmp_path, b"same\n" * 5000)
    assert whole(tmp_path / "out", shuffle(paths, tmp_path / "out")) == b"same\n" * 5000
    assert not (order(100, seed=1) == order(100, seed=2)).all()


def test_a_short_last_file_lands_in_the_middle(tmp_path, room):
    """100 lines behind 4 files of 1,000, in a few runs of the whole thing; in many: test_shuffle_lines.py."""
    room(4000, 500, 20_000)
    paths = write(tmp_path, *[b"large\n" * 1000] * 4, b"small\n" * 100)
    places = []
    for seed in range(15):
        lines = whole(tmp_path / f"{seed}", shuffle(paths, tmp_path / f"{seed}", seed=seed)).split(b"\n")[:-1]
        places += [at / len(lines) for at, line in enumerate(lines) if line == b"small"]
    assert len(places) == 1500 and numpy.mean(places) == pytest.approx(0.5, abs=0.02)


def test_24_orders_of_the_whole_thing(tmp_path, room):
    """Four lines in three files, buckets of a line or two: chi-square below the 0.1 % limit for 23 degrees of freedom."""
    room(6, 2, 2 * 58)
    paths = write(tmp_path, b"0\n", b"1\n2", b"3\n")
    seen: Counter[bytes] = Counter()
    for seed in range(120):
        seen[whole(tmp_path / f"{seed}", shuffle(paths, tmp_path / f"{seed}", seed=seed))] += 1
    assert sum((seen[one] - 5) ** 2 / 5 for one in seen) + 5 * (24 - len(seen)) < 49.7


# What goes in and comes out

def test_headers_and_cuts(tmp_path, room):
    room(*TINY)
    lines = [b"%d,x\r\n" % at for at in range(500)]
    paths = write(tmp_path, b"id,name\r\n" + b"".join(lines[:50]), b"id,name\r\n", b"", b"id,name\r\n" + b"".join(lines[50:]))
    found = shuffle(paths, tmp_path / "out", header=True, lines_per_file=100, ending=".csv")
    bodies = [(tmp_path / "out" / part.name).read_bytes() for part in found.files]
    assert [part.name for part in found.files] == [f"part-0000{at}.csv" for at in range(5)]
    assert all(body.startswith(b"id,name\r\n") and body.count(b"\n") == 101 for body in bodies)
    assert b"".join(body[9:] for body in bodies) == b"".join(lines[at] for at in order(500))
    found = shuffle(paths, tmp_path / "bytes", header=True, bytes_per_file=1000)
    assert max(part.bytes for part in found.files) <= 1000 and sum(part.lines for part in found.files) == 500
    paths[3].write_bytes(b"id,other\r\n1\r\n")
    with pytest.raises(DataError, match="d.txt: its first line"):
        shuffle(paths, tmp_path / "other", header=True)
    assert not (tmp_path / "other").exists()


def test_aligned_files_stay_aligned(tmp_path, room):
    room(*TINY)
    chinese, english = [b"%d\n" % at for at in range(900)], [b"line number %d\n" % at for at in range(900)]
    (tmp_path / "x").mkdir()
    zh, en = tmp_path / "text.zh", tmp_path / "x" / "text.en.gz"
    zh.write_bytes(b"".join(chinese))
    en.write_bytes(gzip.compress(b"".join(english)[:-1]))
    found = shuffle([zh, en], tmp_path / "out", aligned=True, lines_per_file=400, seed=2)
    assert [(part.name, part.lines) for part in found.files] == [(f"text-0000{at}{end}", 400 if at < 2 else 100)
                                                                 for end in (".zh", ".en.gz") for at in range(3)]  # fmt: skip
    left = b"".join((tmp_path / "out" / f"text-0000{at}.zh").read_bytes() for at in range(3))
    right = b"".join(gzip.decompress((tmp_path / "out" / f"text-0000{at}.en.gz").read_bytes()) for at in range(3))
    assert left == b"".join(chinese[at] for at in order(900, seed=2)) and right == b"".join(english[at] for at in order(900, seed=2))
    zh.write_bytes(b"".join(chinese[:-1]))
    with pytest.raises(DataError, match="text.en.gz has 900 lines, but .*text.zh has 899"):
        shuffle([zh, en], tmp_path / "new", aligned=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"one", b"\n\n\n"])
def test_hardly_any_lines(tmp_path, content):
    # Memory beyond whatever the tests before have left in this process.
    found = shuffle(write(tmp_path, content), tmp_path / "out", memory=2**34)
    assert whole(tmp_path / "out", found) == content + b"\n" * (content == b"one") and len(found.files) == 1


def test_to_gz_and_back(tmp_path, room):
    room(*TINY)
    lines = ragged(900)
    (path,) = write(tmp_path, b"".join(lines))
    packed = shuffle([path], tmp_path / "gz", ending=".txt.gz", bytes_per_file=5000)
    assert len(packed.files) > 3
    again = shuffle([tmp_path / "gz" / part.name for part in packed.files], tmp_path / "plain", ending=".txt")
    assert Counter(whole(tmp_path / "plain", again).splitlines(True)) == Counter(b"".join(lines).splitlines(True))
    assert packed.digest == again.digest                             # the lines, in whatever order


def test_to_standard_output(tmp_path, room, capfdbinary):
    room(*TINY)
    lines = ragged(300)
    shuffle(write(tmp_path, b"".join(lines)), "-", temporary=tmp_path)
    assert capfdbinary.readouterr().out == b"".join(lines[at] for at in order(300)) and listing(tmp_path) == {"a.txt"}
    with pytest.raises(ConfigError, match="one file"):
        shuffle([tmp_path / "a.txt"], "-", lines_per_file=3)


def test_another_disk_for_what_is_in_between(tmp_path, room):
    room(*TINY)
    lines, temporary = ragged(300), tmp_path / "temp"
    paths, seen = write(tmp_path, b"".join(lines)), set()
    shuffle(paths, tmp_path / "out", temporary=temporary, progress=lambda *_: seen.update(temporary.rglob("*.lines")))
    assert seen and listing(temporary) == set()


def test_few_descriptors_are_held(tmp_path, room):
    room(20_000, 2000, 3000)
    paths = write(tmp_path, b"".join(ragged(5000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = []
    try:
        held = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 200
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + 12, hard))
        shuffle(paths, tmp_path / "out", progress=lambda *_: most.append(len(list((tmp_path / "out" / WORK / "spool").rglob("*.lines")))))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert max(most) > 60                                            # buckets


# What can go wrong

def test_a_line_longer_than_memory_is_an_error_that_leaves_nothing(tmp_path, room):
    room(*TINY)
    with pytest.raises(DataError, match="a.txt, about line 2 of all: longer than 700 bytes"):
        shuffle(write(tmp_path, b"short\n" + b"x" * 3000), tmp_path / "out")
    assert listing(tmp_path) == {"a.txt"}


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, room, monkeypatch):
    room(*TINY)
    paths = write(tmp_path, b"0123456789\n" * 500)
    monkeypatch.setattr(module, "_free", lambda path: 5000)
    with pytest.raises(FishpawError, match=r"needs 0.000 GB|needs .* but 0.000 GB are free"):
        shuffle(paths, tmp_path / "out")
    assert listing(tmp_path) == {"a.txt"}


def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_later(tmp_path, room, monkeypatch):
    room(*TINY)
    monkeypatch.setattr(module, "_EVERY", 0)
    lines = ragged(2000)
    paths, write_ = write(tmp_path, b"".join(lines)), module.Parts.write
    left = [9]

    def fill(self, *given):
        left[0] -= 1
        if not left[0]:
            raise OSError(28, os.strerror(28))
        write_(self, *given)

    monkeypatch.setattr(module.Parts, "write", fill)
    with pytest.raises(FishpawError, match="No space left on device.*goes on where it was"):
        shuffle(paths, tmp_path / "out")
    assert listing(tmp_path / "out") == {WORK}
    assert whole(tmp_path / "out", shuffle(paths, tmp_path / "out")) == b"".join(lines[at] for at in order(2000))


@pytest.mark.parametrize("fault", ["lost", "twice", "changed"])
def test_a_planted_fault_is_caught_by_the_digest(tmp_path, room, monkeypatch, fault):
    room(*TINY)
    load = module.load

    def bad(*given, **options):
        loaded = load(*given, **options)
        if len(loaded.order) > 1:
            if fault == "changed":
                loaded.source[loaded.starts[1] + loaded.lengths[1] - 2] ^= 1
            else:
                loaded.order[0] = loaded.order[1]
        return loaded

    monkeypatch.setattr(module, "load", bad)
    with pytest.raises(FishpawError, match="not those that were read"):
        shuffle(write(tmp_path, b"".join(b"%05d\n" % at for at in range(200))), tmp_path / "out")
    assert not list((tmp_path / "out").glob("part*"))


# Killed and gone on with

KILLED = """
import os, signal, sys
from fishpaw.data import shuffle as module
from fishpaw.data import shuffle_plan
from fishpaw.data.shuffle_plan import Room
module._EVERY, module.Room.within = 0, staticmethod(lambda memory: Room({room}))
left = int(sys.argv[1])
def tick(stage, done, total):
    global left
    left -= 1
    if not left: os.kill(os.getpid(), signal.SIGKILL)
if left < 0:
    note = module._Job._divide_large
    def cut(self, *given):
        note(self, *given)
        os.kill(os.getpid(), signal.SIGKILL)
    module._Job._divide_large = cut
module.shuffle(sys.argv[3:], sys.argv[2], seed=9, lines_per_file=300, ending=".txt.gz", progress=tick)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_many_places_it_goes_on(tmp_path, room):
    lines, done = ragged(1500), []
    paths = write(tmp_path, b"".join(lines[:400])[:-1], b"".join(lines[400:]))
    script = KILLED.format(room=", ".join(map(str, TINY)))
    for ticks in (1, 7, 20, -1, 4, 9, 2):                            # one after another on the same folder; a few each read, then write
        ended = subprocess.run([sys.executable, "-c", script, str(ticks), str(tmp_path / "out"), *map(str, paths)],
                               env={**os.environ, "PYTHONPATH": SRC}, capture_output=True, timeout=60)  # fmt: skip
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert listing(tmp_path / "out") == {WORK}
    room(*TINY)
    options = {"seed": 9, "lines_per_file": 300, "ending": ".txt.gz"}
    found = shuffle(paths, tmp_path / "out", **options, progress=lambda stage, *at: done.append((stage, *at)))
    assert done[0][0] == "writing" and done[0][1] > found.bytes // 5     # nothing was begun anew
    assert gzip.decompress(whole(tmp_path / "out", found)) == b"".join(lines[at] for at in order(1500, seed=9))
    assert [part.lines for part in found.files] == [300] * 5
    assert listing(tmp_path / "out") == {part.name for part in found.files} | {".shuffle.json"}
    assert shuffle(paths, tmp_path / "out", **options) == found      # nothing is left to be done


def test_an_unfinished_run_of_another_kind_is_not_gone_on_with(tmp_path, room):
    room(*TINY)
    lines = ragged(800)
    paths, calls = write(tmp_path, b"".join(lines)), []

    def stop(stage, done, total):
        calls.append(done)
        if stage == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shuffle(paths, tmp_path / "out", progress=stop)
    with pytest.raises(ConfigError, match="unfinished shuffle of other inputs or options"):
        shuffle(paths, tmp_path / "out", seed=1)
    os.truncate(next((tmp_path / "out" / WORK).rglob("*.lines")), 3)     # a crash of the machine: begun anew by itself
    assert whole(tmp_path / "out", shuffle(paths, tmp_path / "out")) == b"".join(lines[at] for at in order(800))
    again = shuffle(paths, tmp_path / "out", seed=1, restart=True)
    assert whole(tmp_path / "out", again) == b"".join(lines[at] for at in order(800, seed=1))


# Memory

@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("memory", "sizes", "kind"), [(256, (40, 401), ".txt"), (1024, (40, 401), ".txt"), (256, (1, 9), ".txt"),
                                                       (256, (1, 200_001), ".txt"), (256, (40, 401), ".gz")])  # fmt: skip
def test_memory_holds_for_the_whole_process(tmp_path, memory, sizes, kind):
    """The highest resident size of `fishpaw shuffle`, interpreter included, on 1.3 times as much data."""
    random = numpy.random.default_rng(0)
    with (gzip.open(tmp_path / f"a{kind}", "wb", 1) if kind == ".gz" else open(tmp_path / f"a{kind}", "wb")) as file:
        while file.tell() < 1.3 * memory * 2**20:
            ends = numpy.cumsum(random.integers(*sizes, 40_000_000 // sizes[1]))
            block = random.integers(32, 127, int(ends[-1]), dtype=numpy.uint8)
            block[ends - 1] = 10
            file.write(block.data)
    code = "import sys\nfrom fishpaw.cli.program import main\ntry: main()\nfinally: sys.stderr.write(open('/proc/self/status').read())"
    command = ["shuffle", tmp_path / f"a{kind}", "--out", tmp_path / "out", "--memory", f"{memory}M"]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, command)], env={**os.environ, "PYTHONPATH": SRC}, capture_output=True,
                           text=True, check=True)  # fmt: skip
    peak = int(next(line for line in ended.stderr.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    assert 0.5 * memory < peak <= 1.1 * memory, f"{peak:.0f} of {memory} MB"


# The page

def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs/en/shuffle.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_text("{}\n" * 7, encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict = {}
    exec(block.replace("2**30", "2**34"), names)
    assert capsys.readouterr().out.startswith("14 42 ") and sorted(names["numbers"].tolist()) == list(range(14))
