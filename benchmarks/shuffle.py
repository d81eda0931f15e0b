"""Shuffling a file of lines larger than the memory: ours against GNU shuf, sort -R, DuckDB, terashuf, and a plain copy.

    python benchmarks/shuffle.py [--runs N] [--json [FILE]] [--smoke] [--megabytes 2000] [--memory 512]
                                 [--folder DIR] [--leave-out sort,duckdb]

Claim: with 512 MB, 2 GB of lines of 40-400 bytes are shuffled at 0.35 or more of the speed of a plain copy, and 1.8 or more times as fast
as terashuf does it with as much. Every contender is a process of its own and its output is synced to the disk; the lines of each are
compared with those of the input. GNU shuf holds the whole file in memory, whatever it is given; sort -R puts equal lines side by side, so
that it is no shuffle. TERASHUF names its program. Four times the file's size is needed on the disk of --folder.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import shutil
import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import numpy
from benchmarks import harness

DUCKDB = """
import duckdb
base = duckdb.connect()
base.execute("SET memory_limit = '{memory}MB'; SET threads = {threads}; SET preserve_insertion_order = false")
base.execute("SET temp_directory = '{folder}'")
options = "columns = {{'line': 'VARCHAR'}}, header = false, delim = '\\x01', quote = '', escape = '', auto_detect = false"
base.execute("COPY (SELECT line FROM read_csv('{source}', " + options + ") ORDER BY random())"
             " TO '{out}' (HEADER false, DELIMITER '\\x01', QUOTE '', ESCAPE '')")
"""


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=3, more=_options)
    harness.start(given, torch=False)
    megabytes, memory = (3, 256) if given.smoke else (given.megabytes, given.memory)
    report = harness.Report("shuffle", "Lines of a file larger than memory in random order", given)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 4e6 * megabytes:
            sys.exit(f"{folder}: needs {4 * megabytes:,.0f} MB; name another place with --folder")
        source = folder / "lines.txt"
        lines = write(source, int(megabytes * 1e6))
        wanted, peaks = _sum(source), {}

        def run(who: str, call: Callable[[Path, Path], int]) -> int:
            """The peak of memory in bytes; the output is synced."""
            out = folder / "out"
            peaks.setdefault(who, []).append(call(source, out))
            for path in [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]:
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            return out.stat().st_size

        def timed(who: str, call: Callable[[Path, Path], int]) -> Callable[[], object]:
            def once() -> None:
                shutil.rmtree(folder / "out", ignore_errors=True)
                (folder / "out").unlink(missing_ok=True)
                run(who, call)
            return once

        calls = {who: call for who, call in contenders(report, folder, memory, given.threads).items()
                 if not any(left in who for left in given.leave_out.split(",") if left)}
        for who, call in calls.items():
            harness.say(f"  comparing: {who}")
            timed(who, call)()
            found = next((folder / "out").glob("part-*")) if (folder / "out").is_dir() else folder / "out"
            if _sum(found) != wanted:
                raise harness.Different(f"{who}: other lines than the input's")
        peaks.clear()
        seconds = harness.interleave({who: timed(who, call) for who, call in calls.items()}, runs=given.runs, warm_up=0)
    report.note(f"{megabytes:,.0f} MB, {lines:,} lines; the same lines in every output; memory given: {memory} MB")
    report.timed("speed", seconds, unit="MB/s", work=megabytes)
    report.table("peak of memory", {who: [one / 2**20 for one in some] for who, some in peaks.items() if min(some)}, unit="MB",
                 better="less")
    report.finish()


def write(path: Path, size: int) -> int:
    """Lines of 40 to 400 printable bytes. -> how many"""
    random, done, count = numpy.random.default_rng(0), 0, 0
    with open(path, "wb") as file:
        while done < size:
            lengths = random.integers(40, 401, min(100_000, (size - done) // 220 + 1))
            block = random.integers(32, 127, int(lengths.sum()), dtype=numpy.uint8)
            block[numpy.cumsum(lengths) - 1] = 10
            file.write(block.data)
            done, count = done + block.size, count + len(lengths)
    return count


def contenders(report: harness.Report, folder: Path, memory: int, threads: int) -> dict[str, Callable[[Path, Path], int]]:
    """Each reads a file and writes another, or a folder, and gives the peak of its memory."""
    src = str(Path(__file__).resolve().parent.parent / "src")
    ours = [sys.executable, "-m", "fishpaw", "shuffle", "{source}", "--out", "{out}", "--memory", f"{memory}M", "--json"]
    calls = {"fishpaw": _program(ours, PYTHONPATH=src), "plain copy": _copy}
    if shutil.which("shuf"):
        calls["GNU shuf, all in memory"] = _program(["shuf", "{source}", "-o", "{out}"])
    else:
        report.note("left out: GNU shuf (not installed)")
    if shutil.which("sort"):
        sort = ["sort", "-R", "-S", f"{memory}M", "-T", str(folder), f"--parallel={threads}", "{source}", "-o", "{out}"]
        calls["GNU sort -R"] = _program(sort, LC_ALL="C")
    if report.needs("duckdb"):
        code = DUCKDB.format(memory=memory, threads=threads, folder=folder, source="{source}", out="{out}")
        calls["DuckDB order by random()"] = _program([sys.executable, "-c", code])
    if program := os.environ.get("TERASHUF"):
        calls["terashuf"] = _program([program], pipe=True, MEMORY=str(memory / 1000), TMPDIR=str(folder))
    else:
        report.note("left out: terashuf (TERASHUF names no program)")
    return calls


def _program(words: list[str], *, pipe: bool = False, **environment: str) -> Callable[[Path, Path], int]:
    def call(source: Path, out: Path) -> int:
        command = [word.replace("{source}", str(source)).replace("{out}", str(out)) for word in words]
        with open(source, "rb") as stdin, open(out if pipe else os.devnull, "wb") as stdout:
            process = subprocess.Popen(command, stdin=stdin if pipe else subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
                                       env={**os.environ, **environment})
            said = process.stderr.read() if process.stderr else b""
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.stderr:
                process.stderr.close()
        if process.returncode:
            raise RuntimeError(f"{command[0]} failed with {process.returncode}:\n{said.decode(errors='replace')[-2000:]}")
        return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    return call


def _copy(source: Path, out: Path) -> int:
    with open(source, "rb") as file, open(out, "wb") as copy:
        shutil.copyfileobj(file, copy, 2**24)
    return 0


def _sum(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(map(hash, file)) % 2**64


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=float, default=2000, help="of lines, default 2000")
    parser.add_argument("--memory", type=int, default=512, help="MB that each may use, default 512")
    parser.add_argument("--folder", type=Path, help="for the files; default: the system's")
    parser.add_argument("--leave-out", default="", help="by commas: sort, shuf, duckdb, DuckDB, terashuf, copy")


if __name__ == "__main__":
    main()
