"""Batches of lines from files, and parts written: any bytes, packed or not, in pieces of any size, gone on with from any place."""

from __future__ import annotations

import gzip
import io
import sys
from dataclasses import astuple
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishpaw.data import shuffle_files
from fishpaw.data.shuffle_files import Part, Parts, Place, Reader, compression, ending_of, estimate
from fishpaw.data.shuffle_lines import keys
from fishpaw.errors import ConfigError, DataError

RAGGED = [b"one\r\n\n\x00\xff\nlast", b"", b"\n", b"two\nthree\n", b"x" * 50]


def zstd():
    try:
        return shuffle_files._zstd()
    except ConfigError:
        pytest.skip("needs Python 3.14 or zstandard")


def packed(data: bytes, kind: str) -> bytes:
    if kind == ".gz":
        return gzip.compress(data)
    if kind == ".zst":
        packer = zstd()[1]()
        return packer.compress(data) + packer.flush()
    return data


def write(folder: Path, contents: list[bytes], kind: str = "") -> list[str]:
    paths = [folder / f"{at}.txt{kind}" for at in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(packed(content, kind))
    return [str(path) for path in paths]


def wanted(contents: list[bytes], header: bool = False) -> list[bytes]:
    """The lines of all files, each with an end; headers left out."""
    lines = []
    for content in contents:
        rest = content.split(b"\n")
        lines += [line + b"\n" for line in (rest[:-1] if not rest[-1] else rest)][int(header) :]
    return lines


def read(reader: Reader) -> tuple[list[bytes], list[Place]]:
    lines, places = [], []
    for batch in reader:
        first = batch.place.lines - len(batch.lengths)
        assert (batch.keys == keys(reader.seed, first, len(batch.lengths))).all()
        assert batch.lengths.min() > 0 and batch.lengths.sum() == batch.source.size <= reader.capacity + 1
        ends = numpy.cumsum(batch.lengths)
        lines += [batch.source[end - size : end].tobytes() for end, size in zip(ends, batch.lengths, strict=True)]
        places.append(batch.place)
    return lines, places


# Reading

@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize(("capacity", "most"), [(51, 1), (57, 2), (64, 100), (10_000, 3), (10_000, 100)])
def test_all_lines_of_all_files_and_from_each_place_on(tmp_path, kind, header, capacity, most):
    contents = [b"top\n" + content if header else content for content in RAGGED]
    paths = write(tmp_path, contents, kind)
    options = {"seed": 3, "capacity": capacity, "most": most, "header": header}
    reader = Reader(paths, **options)
    lines, places = read(reader)
    assert lines == wanted(contents, header) and reader.header == (b"top\n" if header else b"")
    for place in places:
        assert read(Reader(paths, **options, place=place, top=reader.header))[0] == lines[place.lines :]


@settings(max_examples=30)
@given(st.lists(st.lists(st.binary(max_size=6), max_size=8).map(b"\n".join), max_size=5), st.integers(58, 90), st.integers(1, 5))
def test_any_bytes(tmp_path_factory, contents, capacity, most):
    paths = write(tmp_path_factory.mktemp("any"), contents)
    options = {"seed": 0, "capacity": capacity, "most": most, "header": False}
    lines, places = read(Reader(paths, **options))
    assert lines == wanted(contents)
    for place in places[:3]:
        assert read(Reader(paths, **options, place=place))[0] == lines[place.lines :]


def test_several_frames_and_members(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"c\nd\n"))
    assert read(Reader([str(path)], seed=0, capacity=99, most=9, header=False))[0] == [b"a\n", b"bc\n", b"d\n"]
    (tmp_path / "a.zst").write_bytes(packed(b"a\nb", ".zst") + packed(b"", ".zst") + packed(b"c\nd\n", ".zst"))
    assert read(Reader([str(tmp_path / "a.zst")], seed=0, capacity=99, most=9, header=False))[0] == [b"a\n", b"bc\n", b"d\n"]


@pytest.mark.parametrize("kind", [".gz", ".zst"])
@pytest.mark.parametrize("fault", ["truncated", "changed", "none"])
def test_damaged_files_are_named(tmp_path, kind, fault):
    whole = bytearray(packed(b"".join(b"%d\n" % (at * 7919 % 65_537) for at in range(20_000)), kind))
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes({"truncated": whole[:-9], "changed": whole[:99] + bytes(40) + whole[139:], "none": b"no such thing"}[fault])
    with pytest.raises(DataError, match=f"a.txt{kind}, after line .* damaged"):
        read(Reader([str(path)], seed=0, capacity=1000, most=100, header=False))


def test_what_is_wrong_is_said(tmp_path):
    paths = write(tmp_path, [b"a,b\n1,2\n", b"", b"a,c\n1,2\n"])
    with pytest.raises(DataError, match="2.txt: its first line is not that"):
        read(Reader(paths, seed=0, capacity=100, most=100, header=True))
    paths = write(tmp_path, [b"short\n", b"1\n" + b"x" * 100 + b"\n"])
    with pytest.raises(DataError, match=r"1.txt, about line 3 of all: longer than 100 bytes.*--memory"):
        read(Reader(paths, seed=0, capacity=100, most=100, header=False))
    with pytest.raises(DataError, match="nowhere: can't be read"):
        read(Reader([str(tmp_path / "nowhere")], seed=0, capacity=100, most=100, header=False))


def test_standard_input_stays_open(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(b"a\nb"))
    monkeypatch.setattr(sys, "stdin", stream)
    assert read(Reader(["-"], seed=0, capacity=100, most=100, header=False))[0] == [b"a\n", b"b\n"]
    assert not stream.closed


def test_zst_without_a_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shuffle_files, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(ConfigError, match=r"fishpaw\[zst\]"):
        compression("a.zst")


@pytest.mark.parametrize(
    ("name", "ending"), [("a.b.jsonl.gz", ".jsonl.gz"), ("a.gz", ".gz"), ("a.zh", ".zh"), ("a", ""), ("v1.2/a.zst", ".zst")]
)
def test_endings(name, ending):
    assert ending_of(name) == ending


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
def test_estimates(tmp_path, kind):
    contents = [b"".join(b"%d\n" % (at * 7919 % 65_537) for at in range(1000 * size)) for size in range(1, 20)]
    size, lines = estimate(write(tmp_path, contents, kind))
    whole = sum(map(len, contents))
    assert size == whole if not kind else 0.9 < size / whole < 1.1
    assert 0.9 < lines / 190_000 < 1.1
    assert estimate(write(tmp_path, [b""], kind))[1] < 99


# Writing

def parts(folder: Path, kind: str = "", **options) -> Parts:
    return Parts(folder, lambda at: f"{at}.txt{kind}", **options)


def feed(writer: Parts, lines: list[bytes], size: int = 3) -> None:
    for at in range(0, len(lines), size):
        some = lines[at : at + size]
        writer.write(numpy.frombuffer(b"".join(some), numpy.uint8), numpy.array([len(line) for line in some], numpy.int64))


def unpacked(path: Path) -> bytes:
    if path.suffix == ".zst":
        return shuffle_files._open(str(path)).read()
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
@pytest.mark.parametrize("cut", [{}, {"lines": 1}, {"lines": 5}, {"lines": 10}, {"bytes_": 1}, {"bytes_": 11}, {"bytes_": 10_000}], ids=str)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_parts_hold_what_they_may(tmp_path, kind, cut, size):
    if kind == ".zst":
        zstd()
    lines = [b"%d\n" % 3 ** (at % 13) for at in range(20)]
    writer = parts(tmp_path, kind, header=b"top\n", **cut)
    feed(writer, lines, size)
    writer.close()
    bodies = [unpacked(tmp_path / part.name) for part in writer.done]
    assert all(body.startswith(b"top\n") for body in bodies) and b"".join(body[4:] for body in bodies) == b"".join(lines)
    assert [(part.lines, part.bytes) for part in writer.done] == [(body.count(b"\n") - 1, len(body) - 4) for body in bodies]
    assert len(list(tmp_path.iterdir())) == len(writer.done)         # none is empty, also where the lines come out even
    for part, after in zip(writer.done, [*writer.done[1:], None], strict=True):
        if "lines" in cut:
            assert part.lines == cut["lines"] or after is None
        if "bytes_" in cut:
            assert part.bytes <= cut["bytes_"] or part.lines == 1
            assert after is None or part.bytes + len(unpacked(tmp_path / after.name)[4:].splitlines(True)[0]) > cut["bytes_"]


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
@pytest.mark.parametrize("stop", [1, 6, 7, 12])
def test_writing_goes_on_from_a_place(tmp_path, kind, stop):
    if kind == ".zst":
        zstd()
    lines = [b"line %d\n" % at for at in range(20)]
    writer = parts(tmp_path, kind, lines=6)
    feed(writer, lines[:stop])
    place, done = writer.place(), list(writer.done)
    feed(writer, [b"what a killed process wrote behind it\n"] * 9)
    writer.close(whole=False)
    again = parts(tmp_path, kind, lines=6, state=place, done=done)
    feed(again, lines[stop:])
    again.close()
    assert b"".join(unpacked(tmp_path / part.name) for part in again.done) == b"".join(lines)
    assert [part.lines for part in again.done] == [6, 6, 6, 2]


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
def test_no_line_makes_one_readable_file(tmp_path, kind):
    if kind == ".zst":
        zstd()
    writer = parts(tmp_path, kind)
    writer.close()
    assert writer.done == [Part(f"0.txt{kind}", 0, 0)] and unpacked(tmp_path / f"0.txt{kind}") == b""


def test_a_stream_that_takes_little_at_a_time():
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(bytes(data[:3]))

    stream = Slow()
    writer = Parts(None, lambda at: "-", to=stream)
    feed(writer, [b"several bytes\n"] * 5)
    writer.close()
    assert stream.getvalue() == b"several bytes\n" * 5 and astuple(writer.done[0]) == ("-", 5, 70)
