"""Files of lines as bytes: read in large batches, plain, `.gz` or `.zst`, and written in parts of so many lines or bytes.

A line is whatever ends in "\\n": any other byte is kept, "\\r" and zeros included; to a last line without an end one is added. A place in
the input and one in the output can be stored, and reading and writing go on from them.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy

from fishpaw.data.shuffle_lines import Bits, Bytes, Numbers, keys, line_ends
from fishpaw.errors import ConfigError, DataError

__all__ = ["Batch", "Part", "Parts", "Place", "Reader", "compression", "ending_of", "estimate"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on: the file, how many of its (unpacked) bytes are done, and how many lines of all files."""

    file: int = 0
    offset: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines one after another in `source`, with their lengths and keys [n]; reading goes on at `place`."""

    source: Bytes
    lengths: Numbers
    keys: Bits
    place: Place


@dataclass(frozen=True, slots=True)
class Part:
    """A file that was written; bytes are those before packing, the header not counted."""

    name: str
    lines: int
    bytes: int


class Reader:
    """Iterates over the lines of files, one after another, as batches of at most `most` lines and `capacity` bytes.

    With `header`, the first line of each file is left out and must be the same in all; it is `self.header` then. A batch is valid until
    the next but one is asked for. Raises DataError that names the file: damaged, headers that differ, a line longer than `capacity`.
    """

    def __init__(
        self, paths: Sequence[str], *, seed: int, capacity: int, most: int, header: bool, place: Place = Place(), top: bytes = b""
    ) -> None:
        self.paths, self.seed, self.capacity, self.most = paths, seed, capacity, most
        self.header, self._wanted, self._place = top, header, place

    def __iter__(self) -> Iterator[Batch]:
        with ExitStack() as files:
            yield from self._batches(files)

    def _batches(self, files: ExitStack) -> Iterator[Batch]:
        buffers = [numpy.empty(self.capacity + 1, numpy.uint8) for _ in range(2)]    # one more: for the end that a last line may lack
        file, offset, number = self._place.file, self._place.offset, self._place.lines
        used, turn, marks, opened = 0, 0, [(0, file, offset)], None  # marks: from that byte of the buffer on, it is that file and offset
        while file < len(self.paths) or used:
            buffer = buffers[turn]
            while used < self.capacity and file < len(self.paths):
                name = "standard input" if self.paths[file] == "-" else self.paths[file]
                with _reading(name, number):
                    if opened is None:
                        opened = files.enter_context(_open(self.paths[file]))
                        offset = self._skip(opened, offset, name)
                        marks.append((used, file, offset))
                    count = opened.readinto(buffer.data[used : self.capacity])
                    if not count:
                        files.close()
                        if used and buffer[used - 1] != 10:
                            buffer[used] = 10
                            used += 1
                        file, offset, opened = file + 1, 0, None
                        marks.append((used, file, 0))
                used += count
            begin = 0
            while begin < used:
                ends = line_ends(buffer[begin:used], most=self.most)
                if not ends.size:
                    break
                stop = begin + int(ends[-1])
                at, where, past = next(mark for mark in reversed(marks) if mark[0] <= stop)
                place = Place(where, past + stop - at, number + ends.size)
                yield Batch(buffer[begin:stop], numpy.diff(ends, prepend=0), keys(self.seed, number, ends.size), place)
                begin, number = stop, place.lines
            if not begin and used >= self.capacity:
                name = next(self.paths[mark[1]] for mark in reversed(marks) if mark[0] == 0)
                raise DataError(f"{name}, about line {number + 1} of all: longer than {self.capacity:,} bytes, too long for this memory.",
                                fix="Give more (--memory), or cut the line.")
            buffers[1 - turn][: used - begin] = buffer[begin:used]
            at, where, past = next((mark for mark in reversed(marks) if mark[0] <= begin), marks[0])
            marks = [(0, where, past + begin - at), *((mark[0] - begin, *mark[1:]) for mark in marks if mark[0] > begin)]
            used, turn = used - begin, 1 - turn

    def _skip(self, opened: Any, offset: int, name: str) -> int:
        """Go to the place where reading begins, behind the header."""
        if offset and compression(name):
            rest = offset
            while rest and (passed := len(opened.read(min(rest, _SAMPLE)))):
                rest -= passed
        elif offset:
            opened.seek(offset)
        elif self._wanted:
            top = opened.readline(self.capacity)
            line = top if not top or top.endswith(b"\n") else top + b"\n"
            if line and line != (self.header or line):
                raise DataError(f"{name}: its first line is not that of the files before it.", fix="Shuffle files with one header.")
            self.header, offset = self.header or line, len(top)
        return offset


class Parts:
    """Writes blocks of lines into files of at most `lines` lines or `bytes_` bytes (one line at least), each beginning with `header`.

    `name(i)` is the i-th one's; its ending says whether it is packed. `state` and `done` are what `place` and `done` gave: writing goes
    on there. A part is synced to the disk when it is complete. Without a folder, the stream `to` is the one part.
    """

    def __init__(
        self, folder: Path | None, name: Callable[[int], str], *, header: bytes = b"", lines: int | None = None, bytes_: int | None = None,
        done: Sequence[Part] = (), state: Sequence[int] | None = None, to: BinaryIO | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.name, self.header, self.most_lines, self.most_bytes = folder, name, header, lines, bytes_
        self.done = list(done)
        self._packer: _Packer | None = None
        self._pack = _packer(name(0))
        self._stream = to
        if state is None:
            self._begin()
        else:
            self._lines, self._bytes = state[0], state[1]
            self._open(state[2])

    def write(self, block: Bytes, lengths: Numbers) -> None:
        """Lines one after another, of these lengths [n]."""
        at = byte = 0
        while at < len(lengths):
            fit = len(lengths) - at
            if self.most_lines is not None:
                fit = min(fit, self.most_lines - self._lines)
            elif self.most_bytes is not None:
                ends = numpy.cumsum(lengths[at:])
                fit = max(int(numpy.searchsorted(ends, self.most_bytes - self._bytes, side="right")), int(not self._lines))
            if not fit:
                self._end()
                self._begin()
                continue
            size = int(lengths[at : at + fit].sum())
            self._put(block.data[byte : byte + size])
            self._lines, self._bytes, at, byte = self._lines + fit, self._bytes + size, at + fit, byte + size

    def place(self) -> list[int]:
        """What has been written of the open part: lines, bytes, and the size of its file, whose packing is complete up to here."""
        self._complete()
        return [self._lines, self._bytes, self._file.tell() if self._stream is None else 0]

    def close(self, *, whole: bool = True) -> None:
        """End the open part; whole=False: leave it as it is, to be gone on with or thrown away."""
        if whole:
            self._end()
        elif self._stream is None:
            self._file.close()

    def _begin(self) -> None:
        self._lines = self._bytes = 0
        self._open(0)
        if self.header:
            self._put(memoryview(self.header))

    def _open(self, size: int) -> None:
        if self._stream is not None:
            self._file = self._stream
        else:
            path = (self.folder or Path()) / self.name(len(self.done))
            self._file = open(path, "r+b" if size else "wb", buffering=0)
            self._file.truncate(size)
            self._file.seek(size)
            self._begun = size                                       # up to here the disk has been told to write

    def _put(self, data: memoryview) -> None:
        if self._pack is not None:
            self._packer = self._packer or self._pack()
            _write(self._file, self._packer.compress(data))
        else:
            _write(self._file, data)
        if self._stream is None and (size := self._file.tell()) - self._begun >= _RUN:
            _flush(self._file, self._begun, size - self._begun)
            self._begun = size

    def _complete(self) -> None:
        if self._packer is not None:
            _write(self._file, self._packer.flush())
            self._packer = None

    def _end(self) -> None:
        if self._pack is not None and not (self._lines or self.header):
            self._packer = self._pack()                              # no byte at all would be a damaged file
        self._complete()
        if self._stream is None:
            os.fsync(self._file.fileno())
            self._file.close()
        else:
            self._file.flush()
        self.done.append(Part(self.name(len(self.done)), self._lines, self._bytes))


def ending_of(name: str) -> str:
    """".jsonl.gz" of "a.b.jsonl.gz"; "" of a name without a dot."""
    path = Path(name)
    return (Path(path.stem).suffix if path.suffix.lower() in _PACKED else "") + path.suffix


def compression(name: str) -> str:
    """"gz", "zst" or "". Raises ConfigError where zst is named and nothing here packs it."""
    kind = Path(name).suffix.lower()
    if kind == ".zst":
        _zstd()
    return kind[1:] if kind in _PACKED else ""


def estimate(paths: Sequence[str]) -> tuple[int, int]:
    """About how many bytes and lines files hold, from their sizes and the beginnings of a few; the bytes of plain files are exact."""
    whole = sum(os.stat(path).st_size for path in paths)
    sizes = unpacked = lines = 0.0
    for path in paths[:: max(1, len(paths) // 8)]:
        with _reading(path, 0), _open(path) as file:
            sample, size = file.read(_SAMPLE), os.stat(path).st_size
            packed = file.fileobj.tell() if compression(path) == "gz" else file.raw.tell() if compression(path) else len(sample)
        ratio = (len(sample) / size if len(sample) < _SAMPLE else len(sample) / packed) if compression(path) and sample else 1.0
        sizes, unpacked = sizes + size, unpacked + size * ratio
        lines += size * ratio * (sample.count(b"\n") + 1) / max(1, len(sample))
    scale = whole / max(1.0, sizes)
    return int(unpacked * scale), int(lines * scale)


class _Packer(Protocol):
    def compress(self, data: memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


_PACKED = (".gz", ".zst")
_SAMPLE = 2**20
_GZ_LEVEL = 1                                                       # the fastest: a shuffled file is read once and thrown away
_RUN = 2**25
_FEED = 2**11                                                        # packed bytes at once: unpacked they may be 64 MB, but not more


class _Zstd(io.RawIOBase):
    """Unpacks zstd, frame after frame; unlike the stream readers of the packages it notices a truncated file."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, (self._new, _, self._error) = raw, _zstd()
        self._frame: Any = None
        self._waiting, self._made, self._at = b"", b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._at == len(self._made):
            self._waiting = self._waiting or self._raw.read(_FEED)
            if not self._waiting:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._made, self._at, self._waiting = self._frame.decompress(self._waiting), 0, b""
            except self._error as error:
                raise _Damaged(error) from error
            if self._frame.eof:
                self._waiting, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._made) - self._at)
        buffer[:count] = self._made[self._at : self._at + count]
        self._at += count
        return count

    def tell(self) -> int:
        return self._raw.tell()                                      # in the packed file

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Damaged(Exception):
    """What a package for zstd says of bytes that are none."""


def _open(path: str) -> Any:
    if path == "-":
        return nullcontext(sys.stdin.buffer)                         # it is not ours to close
    kind = compression(path)
    if kind == "gz":
        return gzip.open(path, "rb")
    return io.BufferedReader(_Zstd(open(path, "rb"))) if kind else open(path, "rb")


def _zstd() -> tuple[Callable[[], Any], Callable[[], _Packer], type[Exception]]:
    """What unpacks a frame, what packs one, and the error of damaged bytes: of Python 3.14 or of the package zstandard."""
    try:
        zstd: Any = import_module("compression.zstd")
        checked = {zstd.CompressionParameter.checksum_flag: 1}
        return zstd.ZstdDecompressor, lambda: zstd.ZstdCompressor(options=checked), zstd.ZstdError
    except ImportError:
        pass
    try:
        package: Any = import_module("zstandard")
    except ImportError:
        raise ConfigError("zst needs Python 3.14 or the package zstandard.", fix="pip install 'fishpaw[zst]'") from None
    unpack = package.ZstdDecompressor(max_window_size=2**27)         # as much as `zstd --long` needs, and no more memory
    return unpack.decompressobj, package.ZstdCompressor(write_checksum=True).compressobj, package.ZstdError


def _packer(name: str) -> Callable[[], _Packer] | None:
    kind = compression(name)
    if kind == "gz":
        return lambda: zlib.compressobj(_GZ_LEVEL, zlib.DEFLATED, 31)
    return _zstd()[1] if kind else None


def _write(file: Any, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:                                                      # a disk that is nearly full takes a part
        view = view[file.write(view) :]


def _flush(file: Any, start: int, size: int) -> None:
    """Let the disk begin to write, so that the sync at the end is short; on Linux this advice does."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_DONTNEED)


@contextmanager
def _reading(name: str, lines: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, _Damaged) as error:
        raise DataError(f"{name}, after line {lines} of all: damaged ({error}).", fix="Copy or download the file again.") from error
    except OSError as error:
        raise DataError(f"{name}: can't be read ({error.strerror}).", fix="Check its name, its permissions and the disk.") from error
