"""Shuffle files that are larger than memory: every order of all lines is equally probable, and the same for any memory.

Each line has a random key. Lines are spread over buckets by ranges of it, then each bucket is sorted by it in memory and written: every
byte is read twice and written twice, in large runs. (To shuffle pieces and merge them, as is often done, isn't uniform: of three
pieces of two lines it reaches 288 of 720 orders.) What is done is noted beside the output, and a process killed at any moment is gone on
from; nothing is seen at its place before all of it is whole and its lines were compared with those of the input.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy

from fishpaw.data.shuffle_files import Part, Parts, Place, Reader, compression, estimate
from fishpaw.data.shuffle_lines import Bits, Bytes, Numbers, arranged, fingerprint, hexadecimal, keys, parse, rank
from fishpaw.data.shuffle_plan import (
    STATE,
    WORK,
    Plan,
    Room,
    Shuffled,
    claim,
    digest_of,
    lost,
    parted,
    plan,
    publish,
    read_json,
    told,
    unequal,
)
from fishpaw.data.shuffle_spool import PER_LINE, RECORD, Behind, Bucket, Loaded, ahead, divide, load, remove, reread, restore, scatter
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.files import lock

__all__ = ["Progress", "order", "shuffle"]

Progress = Callable[[str, int, int], None]
"""Is told what is going on, "reading" or "writing", how many bytes are done, and about how many there are, 0 where nobody knows."""


def order(count: int, *, seed: int = 0) -> Numbers:
    """The permutation by which `shuffle` puts `count` lines: the i-th written is the one numbered order[i], [count]."""
    return rank(keys(seed, 0, count), seed=seed)


def shuffle(
    inputs: Sequence[str | Path], out: str | Path, *, memory: int = 2**30, seed: int = 0, header: bool = False, aligned: bool = False,
    ending: str | None = None, lines_per_file: int | None = None, bytes_per_file: int | None = None, temporary: str | Path | None = None,
    restart: bool = False, progress: Progress | None = None,
) -> Shuffled:  # fmt: skip
    """Write the lines of all inputs in random order into files of a new folder, which is as large as they are.

    inputs: files of bytes whose lines end in newlines, also .gz and .zst; "-": standard input. out: the folder; "-": standard output.
    memory: bytes for the whole process. header: the first line of each input stands on top of each file written. aligned: inputs have
    equally many lines and all are put in the same order, each into files of its own. ending: of the files, ".txt", ".jsonl.zst" …, and by
    it how they are packed; default: that of the first input. lines_per_file, bytes_per_file: where files are cut (unpacked bytes, one line
    at least); default: one file. temporary: a folder for what is between reading and writing, as large as the input; default: `out`.

    The order depends on seed and line count only. The same call again goes on where a run was killed (not from standard input);
    restart=True forgets it. progress(stage, bytes done, bytes in all). Raises ConfigError, DataError, FishpawError; then `out` holds
    no part.
    """
    if str(out) == "-":
        ending = ending or ".txt"
    wanted = plan(inputs, seed=seed, header=header, aligned=aligned, ending=ending, lines_per_file=lines_per_file,
                  bytes_per_file=bytes_per_file)  # fmt: skip
    say = progress or (lambda stage, done, total: None)
    if str(out) == "-":
        if lines_per_file or bytes_per_file or len(wanted.sets) > 1:
            raise ConfigError("Standard output is one file.", fix="Name a folder to write several.")
        with told(Path(temporary or tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="fishpaw-shuffle-", dir=temporary) as name:
            return _Job(wanted, Path(name), Path(name), Room.within(memory), say).run()
    target = Path(os.path.abspath(out))
    with lock(target, timeout=1.0), told(target):
        if finished := claim(target, wanted, restart):
            return finished
        made, work = not target.exists(), target / WORK
        spool = work / "spool" if temporary is None else _elsewhere(Path(temporary), target)
        job = _Job(wanted, work, spool, Room.within(memory), say)
        try:
            found = job.run()
        except BaseException as error:
            job.clear(begun=not isinstance(error, (ConfigError, DataError)), made=made)
            raise
        publish(target, wanted, found, spool)
    return found


_EVERY = 2.0                                                         # seconds between notes while reading


@dataclass
class _Set:
    """One set of output files: where reading and writing are."""

    place: list[int] = field(default_factory=lambda: [0, 0, 0])
    bytes: int = 0
    digest: str = "0" * 32
    header: str = ""
    buckets: list[list[int]] = field(default_factory=list)
    read: bool = False
    written: list[int] = field(default_factory=lambda: [0, 0])
    written_digest: str = "0" * 32
    done: list[list[Any]] = field(default_factory=list)
    part: list[int] | None = None


class _Job:
    """A shuffle in three stages; `state.json` in `work` says how far it has come."""

    def __init__(self, wanted: Plan, work: Path, spool: Path, room: Room, say: Progress) -> None:
        self.plan, self.work, self.spool, self.room, self.say = wanted, work, spool, room, say
        self.parts = None if work == spool else work / "parts"       # None: to standard output
        self.sets = [_Set() for _ in wanted.sets]
        self.total = 0

    def run(self) -> Shuffled:
        """All that is left to be done; the parts are whole then, in `parts`."""
        self._take_up()
        for path in filter(None, (self.spool, self.parts)):
            path.mkdir(parents=True, exist_ok=True)
        with Behind() as behind:
            for number, one in enumerate(self.sets):
                if not one.read:
                    self._read(number, one, behind)
            self._compare_counts()
            for number, one in enumerate(self.sets):
                self._write(number, one, behind)
        files = tuple(Part(*part) for one in self.sets for part in one.done)
        return Shuffled(files, sum(one.place[2] for one in self.sets), sum(one.bytes for one in self.sets),
                        digest_of([one.digest for one in self.sets]))  # fmt: skip

    def clear(self, *, begun: bool, made: bool) -> None:
        """After an error: leave nothing behind but, if it has `begun` and something was noted, what the next run goes on with."""
        if not (begun and (self.work / STATE).exists()):
            for path in (self.spool, self.work):
                shutil.rmtree(path, ignore_errors=True)
            if made:
                with suppress(OSError):
                    self.work.parent.rmdir()

    # Reading

    def _read(self, number: int, one: _Set, behind: Behind) -> None:
        folder = self._folder(number)
        reader = Reader(self.plan.sets[number], seed=self.plan.seed, capacity=self.room.batch, most=self.room.lines,
                        header=self.plan.header, place=Place(*one.place), top=bytes.fromhex(one.header))  # fmt: skip
        buckets = [Bucket(*each) for each in one.buckets] or divide(Bucket(0, 2**64), self._count(number))
        digest, noted = parse(one.digest), time.monotonic()
        with closing(ahead(reader)) as batches:
            for batch in batches:
                digest += scatter(batch, buckets, folder, behind)
                one.bytes += batch.source.size
                one.place = list(astuple(batch.place))
                self.say("reading", sum(each.bytes for each in self.sets), self.total)
                if time.monotonic() - noted >= _EVERY:
                    self._note_read(one, buckets, digest, reader)
                    noted = time.monotonic()
        one.read = True
        self._note_read(one, buckets, digest, reader)

    def _note_read(self, one: _Set, buckets: list[Bucket], digest: Bits, reader: Reader) -> None:
        one.buckets = [_bucket_row(bucket) for bucket in buckets]
        one.digest, one.header = hexadecimal(digest), reader.header.hex()
        self._note()

    def _count(self, number: int) -> int:
        """How many buckets: each about 0.7 of what one may take; unknown sizes get many, and what is still too large is divided later."""
        paths = self.plan.sets[number]
        if any(self.plan.inputs[at][1] is None for at in range(len(self.plan.inputs)) if self.plan.inputs[at][0] in paths):
            return 64
        size, lines = estimate(paths)
        return parted(size + PER_LINE * lines, self.room)

    def _compare_counts(self) -> None:
        for one, path in zip(self.sets, self.plan.inputs, strict=False):
            if one.place[2] != self.sets[0].place[2]:
                raise unequal(path[0], one.place[2], self.plan.inputs[0][0], self.sets[0].place[2])

    # Writing

    def _write(self, number: int, one: _Set, behind: Behind) -> None:
        if one.part is None and one.done:
            return
        self._divide_large(number, one, behind)
        folder, seed = self._folder(number), self.plan.seed
        buckets = [Bucket(*each) for each in one.buckets]
        to = sys.stdout.buffer if self.parts is None else None
        parts = Parts(self.parts, self.plan.name(number), header=bytes.fromhex(one.header), lines=self.plan.lines_per_file,
                      bytes_=self.plan.bytes_per_file, done=[Part(*each) for each in one.done], state=one.part, to=to)  # fmt: skip
        digest = parse(one.written_digest)
        buffers = [numpy.empty(max((bucket.bytes for bucket in buckets), default=0), numpy.uint8) for _ in range(2)]
        loaded = (load(bucket, [folder], buffers[at % 2], seed=seed) for at, bucket in enumerate(buckets))
        whole = False
        try:
            with closing(ahead(loaded)) as ready:
                for bucket, lines in zip(buckets, ready, strict=True):
                    digest += self._put(lines, parts, behind)
                    one.written = [one.written[0] + bucket.lines, one.written[1] + bucket.bytes]
                    one.written_digest, one.buckets = hexadecimal(digest), one.buckets[1:]
                    if self.parts is not None:
                        one.part, one.done = parts.place(), [list(astuple(part)) for part in parts.done]
                        self._note()
                    remove(bucket, folder)
                    self.say("writing", sum(each.written[1] for each in self.sets), self.total)
            if one.written_digest != one.digest or one.written != [one.place[2], one.bytes]:
                raise lost(self.work.parent)
            whole = True
        finally:
            parts.close(whole=whole)
        one.part, one.done = None, [list(astuple(part)) for part in parts.done]
        if self.parts is not None:
            self._note()

    def _put(self, loaded: Loaded, parts: Parts, behind: Behind) -> Bits:
        """A bucket in its order to the parts; the fingerprint of what they were given."""
        digest = numpy.zeros(2, numpy.uint64)

        def write(block: Bytes, lengths: Numbers) -> None:
            parts.write(block, lengths)
            digest[:] += fingerprint(block, lengths)

        for first, last, block in arranged(loaded.source, loaded.starts, loaded.lengths, loaded.order, behind.blocks()):
            behind.call(write, block, loaded.lengths[loaded.order[first:last]].astype(numpy.int64))
        behind.wait()
        return digest

    def _divide_large(self, number: int, one: _Set, behind: Behind) -> None:
        """Buckets that don't fit, for the sizes of the input were not known or its lines very unequal, become several."""
        folder, at = self._folder(number), 0
        while at < len(one.buckets):
            large = Bucket(*one.buckets[at])
            if large.memory <= self.room.bucket or large.lines < 2:
                at += 1
                continue
            small = divide(large, max(2, parted(large.memory, self.room)))
            for bucket in small:                                     # of a process that was killed here
                remove(bucket, folder)
            for batch in ahead(reread(large, folder, capacity=self.room.batch, most=self.room.lines)):
                scatter(batch, small, folder, behind)
            one.buckets[at : at + 1] = [_bucket_row(bucket) for bucket in small]
            self._note()
            remove(large, folder)

    # What is noted

    def _folder(self, number: int) -> Path:
        folder = self.spool / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _note(self) -> None:
        """Not synced: it need outlive this process only. After a crash of the machine the sizes of files tell, and the digest."""
        if self.parts is not None:
            new = self.work / f"{STATE}.new"
            new.write_text(json.dumps({"plan": asdict(self.plan), "spool": str(self.spool), "sets": [asdict(one) for one in self.sets]}),
                           encoding="utf-8")  # fmt: skip
            os.replace(new, self.work / STATE)

    def _take_up(self) -> None:
        """What an earlier process noted, if its files are all there; else begin, after a look at the disk."""
        there = read_json(self.work / STATE)
        self.total = sum(one[1] or 0 for one in self.plan.inputs)
        if there is not None and there["spool"] == str(self.spool) and all(path[1] is not None for path in self.plan.inputs):
            self.sets = [_Set(**one) for one in there["sets"]]
            if all(self._is_there(number, one) for number, one in enumerate(self.sets)):
                return
        self.sets = [_Set() for _ in self.plan.sets]
        for path in filter(None, (self.spool, self.parts)):
            shutil.rmtree(path, ignore_errors=True)
        (self.work / STATE).unlink(missing_ok=True)
        self._check_disk()

    def _is_there(self, number: int, one: _Set) -> bool:
        parts, name = self.work / "parts", self.plan.name(number)
        begun = [parts / part[0] for part in one.done] + ([parts / name(len(one.done))] if one.part else [])
        return all(path.exists() for path in begun) and (not one.part or begun[-1].stat().st_size >= one.part[2]) \
            and restore([Bucket(*each) for each in one.buckets], self.spool / str(number))  # fmt: skip

    def _check_disk(self) -> None:
        """Before anything is written: room for all lines, their records, and the bucket that is being written out."""
        size, lines = estimate([one[0] for one in self.plan.inputs if one[1] is not None])
        self.total = size
        spool, parts = size + RECORD.itemsize * lines, 0 if compression(self.plan.endings[0]) else size
        if _disk(self.spool) == _disk(self.work):                    # what is written out leaves the spool
            spool, parts = spool + min(parts, self.room.bucket), 0
        for path, need in ((self.spool, spool), (self.work, parts)):
            if (free := _free(path)) < need:
                raise FishpawError(f"{path}: needs {need / 1e9:,.3f} GB, but {free / 1e9:,.3f} GB are free.",
                                   fix="Free some, or choose another disk (--out, --temp).")  # fmt: skip


def _elsewhere(temporary: Path, target: Path) -> Path:
    return Path(os.path.abspath(temporary)) / f"fishpaw-shuffle-{hashlib.blake2b(os.fsencode(target), digest_size=8).hexdigest()}"


def _bucket_row(bucket: Bucket) -> list[int]:
    return [bucket.low, bucket.high, bucket.lines, bucket.bytes]


def _there(path: Path) -> Path:
    return next(part for part in (path, *path.absolute().parents) if part.exists())


def _disk(path: Path) -> int:
    return _there(path).stat().st_dev


def _free(path: Path) -> int:
    return shutil.disk_usage(_there(path)).free
