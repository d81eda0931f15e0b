"""What every benchmark shares: arguments, the line that says where it ran, interleaved runs, comparing outputs, memory, tables and JSON.

Contenders take turns, ours first, then each peer, and so on: a machine that slows down slows all of them. What counts is a ratio within
one run. Nothing here asserts a time; only outputs that differ stop a benchmark.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Different", "Report", "Row", "Table", "answer", "arguments", "child", "installed", "interleave", "peak", "reset_peak",
           "resting", "same", "say", "start"]

PEERS = ("transformers", "bert4torch", "sentence-transformers", "onnxruntime", "tokenizers", "pytorch_optimizer", "captum", "duckdb")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_STATUS = Path("/proc/self/status")                              # Linux: memory of this process, high-water mark included


class Different(Exception):
    """Two contenders don't compute the same thing: their times can't be compared."""


def lengths(text: str) -> list[int]:
    """"512,1024" -> whole numbers from 1, for argparse, whose error a ValueError becomes."""
    found = [int(one) for one in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def arguments(doc: str, *, runs: int, threads: int | None = None, more: Callable[[argparse.ArgumentParser], object] | None = None
              ) -> argparse.Namespace:
    """The command line that all benchmarks share; `more` adds options of one's own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, help=f"rounds that count (default {runs})")
    parser.add_argument("--threads", type=int, help=f"threads of every contender (default {threads or 'all cores'})")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or to stdout in place of the tables")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, seconds, figures without a meaning")
    parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA"), help="folder of corpora (default FISHPAW_DATA)")
    parser.add_argument("--child", help=argparse.SUPPRESS)       # what a process of its own measures: see `child`
    if more is not None:
        more(parser)
    given = parser.parse_args()
    given.threads = given.threads or threads or CORES
    given.runs = given.runs or (2 if given.smoke else runs)
    given.data = Path(given.data) if given.data else None
    return given


def start(given: argparse.Namespace, *, torch: bool = True) -> None:
    """Threads for every library that asks, no network, no chatter; stdout belongs to the result from here on."""
    threads = str(given.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, RAYON_NUM_THREADS=threads, HF_HUB_OFFLINE="1",
                      HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error",
                      TOKENIZERS_PARALLELISM="true" if given.threads > 1 else "false")
    if given.threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one thread is one core, whatever a library makes of the variables
    sys.stdout = sys.stderr                                      # some peers print when they are imported
    if torch:
        import torch as library

        library.set_num_threads(given.threads)
        library.manual_seed(0)


def installed(package: str) -> bool:
    """Whether a peer is there; its version is in the environment line."""
    return _version(package) is not None


def say(text: str) -> None:
    """A line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def environment(given: argparse.Namespace) -> dict[str, Any]:
    """Where this ran: without it a figure says nothing."""
    versions = {name: found for name in ("torch", *PEERS) if (found := _version(name))}
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}", "processor": _processor(),
            "cores": CORES, "flags": _flags(), "threads": given.threads, "load": load, "versions": versions, "smoke": given.smoke,
            **({"linear": _linear_path()} if "torch" in sys.modules else {})}


def interleave(contenders: Mapping[str, Callable[[], object]], *, runs: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each contender in each round, in turn; the order turns round every second round, so that nobody always runs after the
    same neighbour. `warm_up` rounds come first and don't count: they compile, pack and fill caches."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for name, call in contenders.items():
        say(f"  warming up: {name}")
        for _ in range(warm_up):
            call()
    gc.collect()
    gc.disable()                                                 # else one contender pays for the garbage of another
    try:
        for number in range(runs):
            for name in list(contenders) if number % 2 == 0 else reversed(list(contenders)):
                begin = time.perf_counter()
                contenders[name]()
                seconds[name].append(time.perf_counter() - begin)
            gc.collect()
    finally:
        gc.enable()
    return seconds


def same(what: str, ours: Any, theirs: Any, *, most: float | None = None, cosine: float | None = None) -> str:
    """Compare two outputs [… d] before anything is timed: the largest difference may be `most`, the smallest cosine of a row at least
    `cosine`. -> one line that says what was found. Different where they are further apart."""
    import torch

    a, b = (one.detach().double().flatten(0, -2) for one in (ours, theirs))
    if a.shape != b.shape:
        raise Different(f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    gap, least = float((a - b).abs().max()), float(torch.nn.functional.cosine_similarity(a, b).min())
    found = f"{what}: largest difference {gap:.1e}, smallest cosine {least:.6f}"
    if not (gap <= (most if most is not None else float("inf")) and least >= (cosine if cosine is not None else -2)):
        raise Different(found)
    say("  equal: " + found)
    return found


@dataclass
class Row:
    """One contender: median, worst and best in the table's unit, and how many times better ours is, from rounds run side by side."""

    name: str
    median: float
    least: float
    most: float
    runs: int
    ratio: float | None = None
    ratio_least: float | None = None
    ratio_most: float | None = None


@dataclass
class Table:
    """Contenders for one task. better: "less" (ms, MB) or "more" (tokens/s)."""

    title: str
    unit: str
    better: str
    rows: list[Row]


@dataclass
class Report:
    """What a benchmark found, printed as tables or as JSON."""

    name: str
    claim: str
    given: argparse.Namespace
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = environment(self.given)

    def note(self, text: str) -> None:
        """A line below the tables: a peer left out, outputs compared, how large a batch was."""
        self.notes.append(text)

    def needs(self, *packages: str) -> bool:
        """Whether these peers are installed; where not, a line says who was left out."""
        missing = [name for name in packages if not installed(name)]
        if missing:
            self.note(f"left out: {', '.join(missing)} (not installed; pip install 'fishpaw[bench]')")
        return not missing

    def timed(self, title: str, seconds: Mapping[str, Sequence[float]], *, unit: str = "ms", work: float | None = None) -> None:
        """A table of times; `work` units of something a run: of units a second instead. """
        def values(runs: Sequence[float]) -> list[float]:
            return [one * 1e3 if work is None else work / one for one in runs]

        self.table(title, {name: values(runs) for name, runs in seconds.items()}, unit=unit, better="less" if work is None else "more")

    def table(self, title: str, values: Mapping[str, Sequence[float]], *, unit: str, better: str) -> None:
        """A table of any values. Ratios above 1 say that ours, the first contender so named, is ahead."""
        ours = next((found for name, found in values.items() if name.startswith("fishpaw")), [])
        rows = []
        for name, theirs in values.items():
            row = Row(name, statistics.median(theirs), min(theirs), max(theirs), len(theirs))
            if theirs is not ours and ours and all([*ours, *theirs]):             # a memory of 0 has no ratio
                pairs = [(one / other) if better == "more" else (other / one) for one, other in zip(ours, theirs, strict=True)]
                middle = statistics.median(ours) / row.median
                row.ratio, row.ratio_least, row.ratio_most = middle if better == "more" else 1 / middle, min(pairs), max(pairs)
            rows.append(row)
        self.tables.append(Table(title, unit, better, rows))

    def finish(self) -> None:
        """Print the tables, or the JSON where it was asked for; with --json FILE both."""
        if self.given.json != "-":
            print(self.text(), file=sys.__stdout__)
        if self.given.json:
            written = json.dumps({"benchmark": self.name, "claim": self.claim, "environment": self.environment,
                                  "tables": [asdict(table) for table in self.tables], "notes": self.notes}, ensure_ascii=False, indent=1)
            if self.given.json == "-":
                print(written, file=sys.__stdout__)
            else:
                Path(self.given.json).write_text(written + "\n", encoding="utf-8")

    def text(self) -> str:
        """Tables for the eye."""
        told = {**self.environment, "versions": " ".join(f"{name} {version}" for name, version in self.environment["versions"].items()),
                "flags": " ".join(self.environment["flags"])}
        lines = [f"{self.name}: {self.claim}", "; ".join(f"{name}: {value}" for name, value in told.items())]
        for table in self.tables:
            wide = max(len(row.name) for row in table.rows)
            lines += ["", f"{table.title} ({table.unit}, {table.better} is better)"]
            for row in table.rows:
                ratio = "" if row.ratio is None else f"  ours {row.ratio:.2f}x [{row.ratio_least:.2f}-{row.ratio_most:.2f}]"
                spread = f"[{_short(row.least)}-{_short(row.most)}]"
                lines.append(f"  {row.name:<{wide}}  {_short(row.median):>8}  {spread:<18}{ratio}".rstrip())
        return "\n".join([*lines, "", *self.notes])


def peak() -> int | None:
    """Bytes that this process held at most since `reset_peak` (elsewhere than on Linux: since it began); None where nobody knows."""
    if _STATUS.exists():
        return _status("VmHWM")
    try:
        import resource
    except ImportError:                                          # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """Forget what was held before: counts from now on."""
    if _STATUS.exists():
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:                                          # some containers forbid it: the peak is then since the beginning
            say("  the peak of memory can't be reset here: it counts from the start of the process")


def resting() -> int | None:
    """Bytes that this process holds now; None off Linux."""
    return _status("VmRSS") if _STATUS.exists() else None


def child(script: str, what: str, given: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Run `script --child what` in a process of its own, which prints one line of JSON: memory and imports are measured apart."""
    command = [sys.executable, script, "--child", what, "--runs", str(given.runs), "--threads", str(given.threads), *more]
    command += ["--smoke"] * given.smoke + (["--data", str(given.data)] if given.data else [])
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def answer(values: Mapping[str, Any]) -> None:
    """What a child process says."""
    print(json.dumps(dict(values)), file=sys.__stdout__, flush=True)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(*keys: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in keys:
                return value.strip()
    return ""


def _processor() -> str:
    return _cpuinfo("model name", "Hardware") or platform.processor() or platform.machine()


def _flags() -> list[str]:
    held = _cpuinfo("flags", "Features").split()
    return [flag for flag in FLAGS if flag in held]


def _linear_path() -> str:
    """Which way fishpaw's matrix products go on this machine: the figures depend on it."""
    from fishpaw.model import linear

    return linear.path()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
