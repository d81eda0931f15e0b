"""The shuffle of `fishpaw.data.shuffle` on a Ray cluster: the same lines in the same order, by many processes on many machines.

Inputs and output are on a disk that all machines see; Ray only says who does what. Files are counted, so that each line has its number;
each file is spread over buckets by one task; each bucket is sorted by one task; and what belongs into one file is joined. A task that
dies with its machine is run again; a driver that dies begins again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from fishpaw.data.shuffle_files import Part, Parts, Place, Reader
from fishpaw.data.shuffle_lines import arranged, fingerprint, hexadecimal, parse
from fishpaw.data.shuffle_plan import WORK, Plan, Room, Shuffled, claim, digest_of, lost, parted, plan, publish, told, unequal
from fishpaw.data.shuffle_spool import PER_LINE, Behind, Bucket, ahead, divide, load, scatter
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.files import lock

__all__ = ["shuffle_on_ray"]


def shuffle_on_ray(
    inputs: Sequence[str | Path], out: str | Path, *, memory: int = 2**30, seed: int = 0, header: bool = False, aligned: bool = False,
    ending: str | None = None, lines_per_file: int | None = None, restart: bool = False, address: str | None = None,
) -> Shuffled:  # fmt: skip
    """See `shuffle`; memory is that of each process. address: of the cluster, "auto" for the one that this machine belongs to; None: of
    Ray's own choice (RAY_ADDRESS, else processes on this machine). A Ray that runs already is used.

    Each input is read by one process: many files make many processes useful. Raises ConfigError for standard input and output.
    """
    wanted = plan(inputs, seed=seed, header=header, aligned=aligned, ending=ending, lines_per_file=lines_per_file)
    if str(out) == "-" or any(one[1] is None for one in wanted.inputs):
        raise ConfigError("Ray's processes see files only.", fix="Name files and a folder that all machines see.")
    ray = _started(address)
    target = Path(os.path.abspath(out))
    with lock(target, timeout=1.0), told(target):
        if finished := claim(target, wanted, restart):
            return finished
        work = target / WORK
        shutil.rmtree(work, ignore_errors=True)
        try:
            (work / "parts").mkdir(parents=True)
            sets = [_shuffled(ray, wanted, number, work, memory) for number in range(len(wanted.sets))]
            for paths, one in zip(wanted.sets, sets, strict=True):
                if one.lines != sets[0].lines and aligned:
                    raise unequal(paths[0], one.lines, wanted.sets[0][0], sets[0].lines)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        found = Shuffled(tuple(part for one in sets for part in one.files), sum(one.lines for one in sets), sum(one.bytes for one in sets),
                         digest_of([one.digest for one in sets]))  # fmt: skip
        publish(target, wanted, found, work)
    return found


@dataclass(frozen=True)
class _Counted:
    """What one input holds, and its header."""

    lines: int
    size: int
    header: bytes


def _shuffled(ray: Any, wanted: Plan, number: int, work: Path, memory: int) -> Shuffled:
    """One set of output files."""
    paths, spool = wanted.sets[number], work / f"spool-{number}"
    counted: list[_Counted] = _all(ray, _count, [(path, wanted, memory) for path in paths])
    header = next((one.header for one in counted if one.header), b"")
    for path, one in zip(paths, counted, strict=True):
        if one.header != header and one.header:
            raise DataError(f"{path}: its first line is not that of the files before it.", fix="Shuffle files with one header.")
    lines, size = sum(one.lines for one in counted), sum(one.size for one in counted)
    buckets = divide(Bucket(0, 2**64), parted(size + PER_LINE * lines, Room.within(memory)))
    firsts = numpy.cumsum([0, *(one.lines for one in counted)]).tolist()
    folders = [spool / str(at) for at in range(len(paths))]
    spread = _all(ray, _spread, [(path, wanted, first, buckets, folder, memory)
                                 for path, first, folder in zip(paths, firsts, folders, strict=False)])  # fmt: skip
    read, written = numpy.zeros(2, numpy.uint64), numpy.zeros(2, numpy.uint64)
    for made, digest in spread:
        read += parse(digest)
        for bucket, its in zip(buckets, made, strict=True):
            bucket.lines, bucket.bytes = bucket.lines + its.lines, bucket.bytes + its.bytes
    starts = numpy.cumsum([0, *(bucket.lines for bucket in buckets)]).tolist()
    sorted_ = _all(ray, _sort, [(bucket, start, folders, wanted, number, header, work / "parts", memory)
                                for bucket, start in zip(buckets, starts, strict=False)])  # fmt: skip
    pieces: dict[int, list[Part]] = {}
    for made, digest in sorted_:
        written += parse(digest)
        for part, piece in made:
            pieces.setdefault(part, []).append(piece)
    if (read != written).any():
        raise lost(work.parent)
    shutil.rmtree(spool)
    name, out = wanted.name(number), work / "parts"
    if not pieces:
        empty = Parts(out, name, header=header)
        empty.close()
        pieces[0] = empty.done
    several = [(out, [one.name for one in some], name(part)) for part, some in pieces.items() if len(some) > 1]
    _all(ray, _join, several)
    for part, some in pieces.items():
        if len(some) == 1:
            os.replace(out / some[0].name, out / name(part))
    files = [Part(name(part), sum(one.lines for one in some), sum(one.bytes for one in some)) for part, some in sorted(pieces.items())]
    return Shuffled(tuple(files), lines, size, hexadecimal(read))


# What the processes do

def _count(path: str, wanted: Plan, memory: int) -> _Counted:
    reader, lines, size = _reader(path, wanted, 0, memory), 0, 0
    for batch in reader:
        lines, size = batch.place.lines, size + batch.source.size
    return _Counted(lines, size, reader.header)


def _spread(path: str, wanted: Plan, first: int, buckets: list[Bucket], folder: Path, memory: int) -> tuple[list[Bucket], str]:
    shutil.rmtree(folder, ignore_errors=True)                        # of a process that died
    folder.mkdir(parents=True)
    mine, digest = [replace(bucket) for bucket in buckets], numpy.zeros(2, numpy.uint64)
    with Behind() as behind:
        for batch in ahead(_reader(path, wanted, first, memory)):
            digest += scatter(batch, mine, folder, behind)
    return mine, hexadecimal(digest)


def _sort(bucket: Bucket, start: int, folders: list[Path], wanted: Plan, number: int, header: bytes, out: Path, memory: int
          ) -> tuple[list[tuple[int, Part]], str]:  # fmt: skip
    """Write a bucket whose first line is the `start`-th of all: a piece of each file that it belongs to, and which file that is."""
    if bucket.memory > 2 * Room.within(memory).bucket:               # one bucket is held here, not two
        raise DataError(f"{out.parent.parent}: lines of very unequal lengths need {bucket.memory / 2**20:.0f}M a process.",
                        fix="Give more (--memory).")
    loaded = load(bucket, folders, numpy.empty(bucket.bytes, numpy.uint8), seed=wanted.seed)
    most, digest, made = wanted.lines_per_file or 2**63, numpy.zeros(2, numpy.uint64), []
    with Behind() as behind:
        for first in (start, *range((start // most + 1) * most, start + bucket.lines, most)):
            part, stop = first // most, min(start + bucket.lines, (first // most + 1) * most)
            if stop == first:
                continue                                             # an empty bucket
            name = f".{number}-{part}-{bucket.name}{wanted.endings[number]}"
            pieces = Parts(out, _always(name), header=header if first == part * most else b"")
            for low, high, block in arranged(loaded.source, loaded.starts, loaded.lengths, loaded.order[first - start : stop - start],
                                             behind.blocks()):  # fmt: skip
                lengths = loaded.lengths[loaded.order[first - start + low : first - start + high]].astype(numpy.int64)
                behind.call(pieces.write, block, lengths)
                digest += fingerprint(block, lengths)
            behind.wait()
            pieces.close()
            made.append((part, pieces.done[0]))
    return made, hexadecimal(digest)


def _join(folder: Path, pieces: list[str], name: str) -> None:
    """One file of several: packed ones may stand one after another, too. Pieces stay until all is done, for it may be done again."""
    with open(folder / name, "wb") as whole:
        for piece in pieces:
            with open(folder / piece, "rb") as part:
                shutil.copyfileobj(part, whole, 2**20)
        whole.flush()
        os.fsync(whole.fileno())


def _reader(path: str, wanted: Plan, first: int, memory: int) -> Reader:
    room = Room.within(memory)
    return Reader([path], seed=wanted.seed, capacity=room.batch, most=room.lines, header=wanted.header, place=Place(lines=first))


def _always(name: str) -> Callable[[int], str]:
    return lambda part: name


def _guarded(function: Callable[..., Any], *given: Any) -> Any:
    """A user's mistake as a value: Ray would wrap the error into a traceback."""
    try:
        with told(Path(".")):
            return function(*given)
    except FishpawError as error:
        return error


def _all(ray: Any, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The results of a task each."""
    task = ray.remote(_guarded)
    results = ray.get([task.remote(function, *given) for given in calls])
    for result in results:
        if isinstance(result, FishpawError):
            raise result
    return list(results)


def _started(address: str | None) -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed.", fix="pip install 'fishpaw[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR,
                     include_dashboard=None if address else False)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"No Ray cluster at {address}: {error}.", fix="Start one with `ray start --head`.") from error
    return ray
