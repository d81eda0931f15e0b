"""What this machine offers: processor, threads, memory, GPUs, torch's build, packages; how fast it multiplies and what to expect of that;
what to do where something is missing. Nothing here asks the network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fishpaw import __version__
from fishpaw.demo import data_folder, reviews
from fishpaw.errors import FishpawError
from fishpaw.model.linear import Packed, path

__all__ = ["Cores", "Finding", "Model", "cores", "examine", "operations"]

ROOT = Path("/")
"""Where the kernel's own files are: proc and sys."""

_REQUIRED = ("numpy", "safetensors", "tokenizers", "huggingface_hub", "typer", "tqdm")
_EXTRAS = {"jieba": "zh", "sentencepiece": "spm", "jinja2": "chat", "h5py": "h5", "onnx": "onnx", "onnxscript": "onnx",
           "onnxruntime": "onnx", "ray": "ray", "zstandard": "zst", "matplotlib": "plot", "sklearn": "recipes",
           "transformers": "parity"}  # fmt: skip
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
_FEATURES = {"avx2": "AVX2", "avx512": "AVX-512", "vnni": "VNNI", "avx512_bf16": "AVX-512 BF16", "amx": "AMX", "neon": "NEON", "sve": "SVE",
             "bf16": "BF16"}  # fmt: skip
_NATIVE = {"avx512_bf16", "amx", "bf16"}                         # any of them multiplies bf16 without converting it
_FLAGS = {"avx2": "avx2", "avx512f": "avx512", "avx512_vnni": "vnni", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx", "asimd": "neon",
          "sve": "sve", "bf16": "bf16"}  # fmt: skip
_WORTH = 1.2                                                     # times the speed of fp32 from which bf16 is worth its rounding
_LENGTH = 128                                                    # tokens a text, of what is expected


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and the next step where something is missing. figures: the numbers in it, for
    programs."""

    subject: str
    found: str
    advice: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


class Cores(NamedTuple):
    """logical: of the machine. usable: those that this process may run on. physical: how many cores the usable ones are, None where the
    system doesn't tell. quota: processor seconds a second that a container may use, None for no limit."""

    logical: int
    usable: int
    physical: int | None
    quota: float | None

    @property
    def best(self) -> int:
        """How many threads matrix products run fastest with: one a core, no more than the quota feeds."""
        least = min(self.usable, self.physical or self.usable)
        return least if self.quota is None else max(1, min(least, math.floor(self.quota)))


class Model(NamedTuple):
    """A model whose speed is expected. forward, training: the share of the speed of the matrix products alone that it is expected to reach,
    set by hand (docs/en/doctor.md)."""

    name: str
    layers: int
    width: int
    forward: float
    training: float


MODELS = (Model("BERT-base", 12, 768, 0.9, 0.75), Model("4x256", 4, 256, 0.6, 0.5))


def examine(*, seconds: float = 1.5) -> list[Finding]:
    """Everything worth knowing before a report of a fault, in a fixed order; the next command to try at the end. seconds: what measuring
    matrix products may take, about; 0: nothing is measured."""
    found = cores()
    findings = [
        Finding("fishpaw", __version__),
        Finding("python", f"{platform.python_version()} ({sys.platform}, {platform.machine()})"),
        _torch(),
        _processor(),
        _cores(found),
        _threads(found),
        _memory(),
        *_gpus(),
        _linear(),
        *(_speed(seconds) if seconds > 0 else ()),
        Finding("hub", (os.environ.get("HF_ENDPOINT") or "the default hub") + (", offline" if _is_offline() else "")),
        _models(),
        Finding("cache", str(_cache())),
        _data(),
        _compiler(),
        *(Finding(package, _version(package)) for package in _REQUIRED),
        *_extras(),
        Finding("next", "fishpaw demo: fill, compare, write and learn, in a minute"),
    ]
    return findings


def cores() -> Cores:
    """The cores of this machine, of this process and of its container."""
    logical = os.cpu_count() or 1
    allowed = getattr(os, "sched_getaffinity", None)                 # not on macOS and Windows
    ids = sorted(allowed(0)) if allowed is not None else range(logical)
    siblings = {_read(f"sys/devices/system/cpu/cpu{one}/topology/thread_siblings_list") for one in ids}
    physical = len(siblings) if None not in siblings else _told("num_physical_cores")
    return Cores(logical, len(ids), physical, _quota())


def operations(model: Model, *, length: int = _LENGTH) -> int:
    """Floating point operations that a forward pass takes a token, in texts of so many tokens, embedding and head left out: each layer's
    matrices, 12 width**2 weights, take 2 a weight; the scores of attention and what they mix 4 length width."""
    return model.layers * (24 * model.width**2 + 4 * length * model.width)


def _torch() -> Finding:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU build"
    backends = [name for name in ("mkl", "mkldnn", "openmp") if getattr(torch.backends, name).is_available()]
    return Finding("torch", f"{torch.__version__} ({build}; {', '.join(backends) or 'no fast products on the CPU'})")


def _processor() -> Finding:
    features = _features()
    named = ", ".join(name for key, name in _FEATURES.items() if key in features) or "no vector units known"
    native = "native" if features & _NATIVE else "not native"
    used = torch.backends.cpu.get_cpu_capability()
    return Finding("processor", f"{_name()}: {named}; bf16 is {native}; torch uses {used}",
                   figures={"features": sorted(features), "bf16": native == "native", "used": used})


def _features() -> set[str]:
    """Of _FEATURES, by torch where it tells and by the kernel; neither knows all processors."""
    asked = {"_is_avx2_supported": "avx2", "_is_avx512_supported": "avx512", "_is_vnni_supported": "vnni",
             "_is_avx512_bf16_supported": "avx512_bf16", "_is_amx_tile_supported": "amx"}  # fmt: skip
    found = {feature for name, feature in asked.items() if (ask := getattr(torch.cpu, name, None)) is not None and ask()}
    for line in (_read("proc/cpuinfo") or "").splitlines():
        if line.startswith(("flags", "Features")):
            return found | {feature for flag, feature in _FLAGS.items() if flag in line.split()}
    return found | ({"neon"} if platform.machine().lower() in ("arm64", "aarch64") else set())


def _name() -> str:
    lines = (line.partition(":") for line in (_read("proc/cpuinfo") or "").splitlines())
    named = (value.strip() for key, _, value in lines if key.strip() == "model name")
    return next(named, "") or platform.processor() or platform.machine() or "unknown"


def _cores(found: Cores) -> Finding:
    parts = [f"{found.logical} logical"]
    if found.usable != found.logical:
        parts.append(f"{found.usable} of them for this process")
    parts.append("physical: not known" if found.physical is None else f"{found.physical} physical")
    if found.quota is not None:
        parts.append(f"a container's limit of {found.quota:g}")
    return Finding("cores", ", ".join(parts), figures=found._asdict())


def _threads(found: Cores) -> Finding:
    """A container may see all cores of its host and be given a few: threads that wait for each other then take turns on these."""
    count, best = torch.get_num_threads(), found.best
    asked = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    said = ", ".join(f"{name} is {'not set' if value is None else repr(value)}" for name, value in asked.items()
                     if value is not None or name == "OMP_NUM_THREADS")  # fmt: skip
    advice, written = None, asked["OMP_NUM_THREADS"]
    if written is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", written.strip()):
        advice = f"OMP_NUM_THREADS is no number: set it to {best}, or unset it"
    elif found.quota is not None and count > max(1, math.ceil(found.quota)):
        advice = f"set OMP_NUM_THREADS={best}: of {found.usable} cores this container may use {found.quota:g}; more threads only wait"
    elif count > found.usable:
        advice = f"set OMP_NUM_THREADS={best}: this process may run on {found.usable} cores"
    elif count < best:
        advice = f"set OMP_NUM_THREADS={best}, unless the other cores are for other processes"
    return Finding("threads", f"{count} for products; {said}", advice, {"threads": count, "best": best})


def _memory() -> Finding:
    """Of the machine, what is free of it, and the limit of a container."""
    told = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("proc/meminfo") or "", re.M))
    total, free = (int(told[name]) * 1024 if name in told else None for name in ("MemTotal", "MemAvailable"))
    if total is None:
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):                # Windows
            total = None
    limits = [int(text) for text in _limits("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    limit = min(limits, default=None)
    limit = None if limit is None or (total is not None and limit >= total) else limit
    parts = ["not known" if total is None else _size(total)]
    if free is not None:
        parts.append(f"{_size(free)} free")
    if limit is not None:
        parts.append(f"a container's limit of {_size(limit)}")
    return Finding("memory", ", ".join(parts), figures={"total": total, "free": free, "limit": limit})


def _gpus() -> Iterator[Finding]:
    """A line each, and one where there is none: whether a driver waits for another build of torch."""
    with warnings.catch_warnings():                                  # a driver that is too old is told below
        warnings.simplefilter("ignore")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        bf16 = facts.major >= 8 or torch.version.hip is not None
        yield Finding("gpu", f"cuda:{index} {facts.name}, {_size(facts.total_memory)}, capability {facts.major}.{facts.minor}, "
                      f"bf16 is {'native' if bf16 else 'not native'}",
                      figures={"index": index, "name": facts.name, "memory": facts.total_memory, "bf16": bf16})  # fmt: skip
    if count:
        return
    if torch.backends.mps.is_available():
        yield Finding("gpu", "Apple GPU: --device mps")
    elif (ROOT / "proc/driver/nvidia/version").exists():
        build = torch.version.cuda
        yield Finding("gpu", f"an NVIDIA driver is here, but torch {'does not get through to it' if build else 'is a CPU build'}",
                      "update the driver, or look at CUDA_VISIBLE_DEVICES" if build else "install a CUDA build of torch")
    else:
        yield Finding("gpu", "none")


def _linear() -> Finding:
    """Which of two products model/linear takes in fp32, and who says so."""
    try:
        ways = {kind: path(kind) for kind in ("packed", "dense")}
    except FishpawError as error:
        return Finding("linear", error.what, error.fix)
    asked = os.environ.get("FISHPAW_LINEAR", "auto")
    by = f"as FISHPAW_LINEAR says: {asked}" if asked != "auto" else f"the faster ones; measured once, kept in {_cache() / 'linear.json'}"
    return Finding("linear", f"{ways['packed']} prepared, {ways['dense']} in training ({by})", figures=ways)


def _speed(seconds: float) -> Iterator[Finding]:
    """Measured: products of the widths of two models. Expected by them: tokens a second, and which number format to take."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speeds: dict[tuple[int, torch.dtype], float] = {}
    for model in MODELS:
        for dtype in (torch.float32, torch.bfloat16):
            if (speed := _product(model.width, dtype, device, seconds / 2 / len(MODELS))) is not None:
                speeds[model.width, dtype] = speed
    if not all((model.width, torch.float32) in speeds for model in MODELS):
        yield Finding("product", "can't be measured")
        return
    figures = {f"{'fp32' if dtype == torch.float32 else 'bf16'}_{width}": round(speed / 1e9, 1) for (width, dtype), speed in speeds.items()}
    lines = [f"{model.width} wide: fp32 {_giga(speeds.get((model.width, torch.float32)))}, "
             f"bf16 {_giga(speeds.get((model.width, torch.bfloat16)))}" for model in MODELS]
    on = "the GPU" if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    yield Finding("product", f"{'; '.join(lines)} (GFLOP/s, measured on {on})", _busy() if device.type == "cpu" else None, figures)
    ratio = speeds.get((MODELS[0].width, torch.bfloat16), 0.0) / speeds[MODELS[0].width, torch.float32]
    if ratio >= _WORTH:
        said = "bf16: model.prepare(dtype=torch.bfloat16) to predict, --precision bf16 to train"
    else:
        said = "fp32: bf16 has too little to give here"
    yield Finding("dtype", f"{said} (its products are {ratio:.1f} times as fast)", figures={"advice": said[:4], "ratio": round(ratio, 2)})
    if device.type == "cuda":                                        # the shares are of processors
        return
    for name, cost in (("forward", 1), ("training", 3)):             # a backward pass is two more products for each
        expected = {}
        for model in MODELS:
            share = model.forward if name == "forward" else model.training
            expected[model.name] = round(share * speeds[model.width, torch.float32] / (cost * operations(model)))
        told = ", ".join(f"{model} {count:,} tokens/s" for model, count in expected.items())
        shares = " and ".join(f"{model.forward if name == 'forward' else model.training:g}" for model in MODELS)
        formula = f"{shares} x GFLOP/s / {'FLOPs of a token' if cost == 1 else f'{cost} times the FLOPs'}"
        yield Finding(name, f"{told} (estimate in fp32, {_LENGTH} tokens a text: {formula})", figures=expected)


def _busy() -> str | None:
    """Advice where others compute, too."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):                                # Windows
        return None
    return f"measure again when the machine is idle: its load is {load:.1f}" if load > 0.5 * (os.cpu_count() or 1) else None


def _product(width: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float | None:
    """Floating point operations a second of a feed-forward layer's two products, the best run; None where they can't be computed. Few rows
    first: some processors take seconds for what others do in a blink."""
    try:
        sizes = (4 * width, width), (width, 4 * width)
        up, down = (Packed(torch.full(size, 0.01, device=device), None, dtype) for size in sizes)
        best = 0.0
        for rows in (32, 512) if device.type == "cpu" else (512, 16384):
            x = torch.ones(rows, width, dtype=dtype, device=device)
            flops, spent, runs = 16 * rows * width**2, 0.0, 0
            while runs < 2 or spent < seconds / 2:
                took = _timed(lambda x=x: down(up(x)), device)       # type: ignore[misc]  # mypy knows no default of a lambda
                best, spent, runs = max(best, flops / took), spent + took, runs + 1
                if took > seconds:
                    return best
        return best
    except (RuntimeError, FishpawError):                             # no such product on this processor, no memory; what `linear` says
        return None


def _timed(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.inference_mode():
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return max(time.perf_counter() - began, 1e-9)


def _models() -> Finding:
    """Where models of the hub lie, as hub.py finds it."""
    home = os.environ.get("HF_HOME")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or (os.path.join(home, "hub") if home else None)
    folder = Path(os.path.expandvars(named)).expanduser().absolute() if named else _user_cache() / "huggingface" / "hub"
    held = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    there = next(part for part in (folder, *folder.parents) if part.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = None
    said = f"{folder}: {held} models" + ("" if free is None else f", {_size(free)} free on the disk")
    return Finding("models", said, figures={"folder": str(folder), "models": held, "free": free})


def _data() -> Finding:
    """The folder that the demo trains on."""
    try:
        named = data_folder()
        return Finding("data", reviews(named).source if named else "FISHPAW_DATA is not set: the demo uses the bundled reviews")
    except FishpawError as error:
        return Finding("data", error.what, error.fix)


def _compiler() -> Finding:
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++", "cl") if name]
    found = next((place for name in names if (place := shutil.which(name))), None)
    return Finding("compiler", found or "none (only torch.compile needs one)")


def _extras() -> Iterator[Finding]:
    for package, extra in _EXTRAS.items():
        if package == "zstandard" and sys.version_info >= (3, 14):   # Python has it within
            continue
        held = importlib.util.find_spec(package) is not None
        yield Finding(package, _version(package) if held else "not installed", None if held else f'pip install "fishpaw[{extra}]"')


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:                  # a folder on the path, without its metadata
        return "installed"


def _is_offline() -> bool:
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in {"1", "ON", "YES", "TRUE"}


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _cache() -> Path:
    return _user_cache() / "fishpaw"


def _quota() -> float | None:
    """The smallest limit of the process's groups, in cores: "200000 100000" microseconds (a group above may have a smaller one), or in two
    files of the first version of control groups."""
    found = []
    for text in _limits("cpu", "cpu.max", "cpu.cfs_quota_us"):
        allowed, _, period = text.partition(" ")
        if allowed.isdigit():
            found.append(int(allowed) / int(period or 100_000))
    return min(found, default=None)


def _limits(controller: str, name: str, older: str) -> Iterator[str]:
    """What the control groups of this process, and those above them, say in a file of the second version, or in the first version's."""
    places = {("sys/fs/cgroup", name, ""), (f"sys/fs/cgroup/{controller}", older, "")}
    for line in (_read("proc/self/cgroup") or "").splitlines():
        _, controllers, group = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            places.add(("sys/fs/cgroup", name, group))
        elif controller in controllers.split(","):
            places.add((f"sys/fs/cgroup/{controller}", older, group))
    for top, file, group in sorted(places):
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            folder = "/".join([top, *parts[:depth]])
            if (text := _read(f"{folder}/{file}")) is not None:
                period = _read(f"{folder}/cpu.cfs_period_us") if file == "cpu.cfs_quota_us" else None
                yield f"{text} {period}" if period else text


def _read(name: str) -> str | None:
    """A file of the kernel's, None where it can't be read."""
    try:
        return (ROOT / name).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _told(fact: str) -> int | None:
    """What newer torches know of the processor."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    value = ask().get(fact) if ask is not None else None
    return value if isinstance(value, int) and value > 0 else None


def _giga(speed: float | None) -> str:
    return "none" if speed is None else f"{speed / 1e9:.0f}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
