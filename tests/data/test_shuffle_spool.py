"""Buckets on the disk: what goes in comes out, in the order of the keys; files are cut back to what was noted; calls behind one's back."""

from __future__ import annotations

import threading
import time

import numpy
import pytest

from fishpaw.data.shuffle_files import Batch, Place
from fishpaw.data.shuffle_lines import BLOCK, fingerprint, keys, rank
from fishpaw.data.shuffle_spool import RECORD, Behind, Bucket, ahead, divide, load, reread, restore, scatter
from fishpaw.errors import DataError

WHOLE = Bucket(0, 2**64)


def batch_of(lines: list[bytes], seed: int = 0, first: int = 0) -> Batch:
    return Batch(numpy.frombuffer(b"".join(lines), numpy.uint8), numpy.array([len(line) for line in lines], numpy.int64),
                 keys(seed, first, len(lines)), Place(lines=first + len(lines)))  # fmt: skip


def spread(lines, buckets, folder, size=100):
    total = numpy.zeros(2, numpy.uint64)
    with Behind() as behind:
        for at in range(0, len(lines), size):
            total += scatter(batch_of(lines[at : at + size], first=at), buckets, folder, behind)
    return total


def collected(buckets, folder) -> list[bytes]:
    made = []
    for bucket in buckets:
        loaded = load(bucket, [folder], numpy.empty(bucket.bytes, numpy.uint8), seed=0)
        made += [loaded.source[loaded.starts[at] : loaded.starts[at] + loaded.lengths[at]].tobytes() for at in loaded.order]
    return made


@pytest.mark.parametrize("count", [1, 2, 3, 7, 256])
def test_buckets_cover_all_keys_once(count):
    buckets = divide(WHOLE, count)
    assert len(buckets) == count and buckets[0].low == 0 and buckets[-1].high == 2**64
    assert all(one.high == other.low for one, other in zip(buckets, buckets[1:], strict=False))
    assert [bucket.name for bucket in buckets] == sorted({bucket.name for bucket in buckets})
    assert len(divide(Bucket(5, 8), 256)) == 3                       # no bucket is empty by its range


@pytest.mark.parametrize("count", [1, 3, 50])
def test_lines_come_out_by_their_keys(tmp_path, count):
    lines = [b"%d" % at * (at % 5 + 1) + b"\n" for at in range(777)] + [b"x" * (BLOCK + 9)]
    buckets = divide(WHOLE, count)
    total = spread(lines, buckets, tmp_path)
    assert sum(bucket.lines for bucket in buckets) == 778 and sum(bucket.bytes for bucket in buckets) == sum(map(len, lines))
    batch = batch_of(lines)
    assert (total == fingerprint(batch.source, batch.lengths)).all()
    assert collected(buckets, tmp_path) == [lines[at] for at in rank(keys(0, 0, 778), seed=0)]


def test_a_large_bucket_is_divided(tmp_path):
    lines = [b"%d\n" % at for at in range(500)]
    (large,) = buckets = divide(WHOLE, 1)
    spread(lines, buckets, tmp_path)
    small = divide(large, 5)
    with Behind() as behind:
        for batch in reread(large, tmp_path, capacity=200, most=30):
            assert batch.source.size <= 200 and len(batch.lengths) <= 30
            scatter(batch, small, tmp_path, behind)
    assert collected(small, tmp_path) == collected([large], tmp_path)
    assert restore(small, tmp_path) and not (tmp_path / f"{large.name}.lines").exists()


def test_files_are_cut_back_to_what_was_noted(tmp_path):
    lines = [b"%d\n" % at for at in range(300)]
    buckets = divide(WHOLE, 4)
    spread(lines[:200], buckets, tmp_path)
    noted = [Bucket(bucket.low, bucket.high, bucket.lines, bucket.bytes) for bucket in buckets]
    spread(lines, buckets, tmp_path)                                 # a process that was killed before it noted this
    (tmp_path / "foreign").write_bytes(b"")
    assert restore(noted, tmp_path) and not (tmp_path / "foreign").exists()
    assert sorted(collected(noted, tmp_path)) == sorted(lines[:200])
    with open(tmp_path / f"{noted[1].name}.lines", "r+b") as file:
        file.truncate(noted[1].bytes - 1)
    assert not restore(noted, tmp_path)
    with pytest.raises(DataError, match="changed meanwhile"):
        collected(noted, tmp_path)
    assert restore([WHOLE], tmp_path / "nowhere")


def test_records_that_disagree_are_noticed(tmp_path):
    buckets = divide(WHOLE, 1)
    spread([b"a\n", b"bc\n"], buckets, tmp_path)
    path = tmp_path / f"{WHOLE.name}.records"
    records = numpy.fromfile(path, RECORD)
    records["length"][0] += 1
    path.write_bytes(records.tobytes())
    with pytest.raises(DataError, match="changed meanwhile"):
        collected(buckets, tmp_path)
    with pytest.raises(DataError, match="changed meanwhile"):
        list(reread(buckets[0], tmp_path, capacity=100, most=9))


def test_calls_run_behind_in_their_order_and_what_they_raise_is_raised(tmp_path):
    said = []
    with Behind() as behind:
        blocks = behind.blocks()
        for at in range(20):
            block = next(blocks)
            block[:3] = at
            behind.call(lambda block, at: (time.sleep(0.001), said.append((at, set(block[:3].tolist())))), block, at)
        behind.wait()
        assert said == [(at, {at}) for at in range(20)]              # no block was lent again too early
        behind.call(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            behind.wait()


def test_ahead_makes_one_item_while_another_is_used():
    made, used = [], threading.Event()

    def items():
        for at in range(5):
            made.append(at)
            yield at
        used.wait(5)
        raise KeyError("late")

    with pytest.raises(KeyError, match="late"):
        for item in ahead(items()):
            deadline = time.monotonic() + 5
            while len(made) < min(5, item + 2) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(made) == min(5, item + 2)
            used.set() if item == 4 else None
