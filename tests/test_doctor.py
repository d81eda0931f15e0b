"""The doctor's findings: all there, in order, with advice exactly where something is missing; containers, other systems, other torches."""

from __future__ import annotations

import importlib.util
import os
import socket
from types import SimpleNamespace

import pytest
import torch

import fishpaw
from fishpaw import doctor
from fishpaw.config import ModelConfig
from fishpaw.doctor import MODELS, Cores, Finding, cores, examine, operations
from fishpaw.model import linear
from fishpaw.model.transformer import Transformer

ORDER = ["fishpaw", "python", "torch", "processor", "cores", "threads", "memory", "gpu", "linear", "hub", "models", "cache", "data",
         "compiler", "numpy", "safetensors", "tokenizers", "huggingface_hub", "typer", "tqdm"]  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("FISHPAW_DATA", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HOME",
                 "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """kernel({"proc/cpuinfo": …}, affinity) -> the doctor sees these files of the kernel's only."""
    def make(files: dict[str, str], usable: int = 8) -> None:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content + "\n", encoding="utf-8")
        monkeypatch.setattr(doctor, "ROOT", tmp_path)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(usable)), raising=False)
        for name in ("_is_avx2_supported", "_is_avx512_supported", "_is_vnni_supported", "_is_avx512_bf16_supported",
                     "_is_amx_tile_supported", "get_capabilities"):  # fmt: skip
            monkeypatch.delattr(torch.cpu, name, raising=False)

    return make


def said(seconds: float = 0) -> dict[str, Finding]:
    found = examine(seconds=seconds)
    assert len({one.subject for one in found}) == len(found)
    return {one.subject: one for one in found}


def test_says_what_there_is():
    found = said()
    assert [*found][: len(ORDER)] == ORDER and [*found][-1] == "next" and all(one.found for one in found.values())
    assert found["fishpaw"].found == fishpaw.__version__ and found["torch"].found.startswith(torch.__version__)
    assert all(" " not in subject for subject in found)


def test_products_are_measured_and_what_is_expected_follows_from_them():
    torch.set_num_threads(1)
    found = said(0.4)
    figures = found["product"].figures
    assert 0.1 < figures["fp32_768"] < 1e6 and figures["fp32_256"] > 0.1
    assert found["dtype"].figures["advice"] == ("bf16" if found["dtype"].figures["ratio"] >= 1.2 else "fp32")
    if torch.cuda.is_available():
        return
    for model in MODELS:
        speed = figures[f"fp32_{model.width}"] * 1e9
        assert found["forward"].figures[model.name] == pytest.approx(model.forward * speed / operations(model), rel=0.1, abs=1)
        assert found["training"].figures[model.name] == pytest.approx(model.training * speed / operations(model) / 3, rel=0.1, abs=1)
    assert "estimate" in found["forward"].found and "0.9 and 0.6 x GFLOP/s / FLOPs" in found["forward"].found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_operations_are_those_that_torch_counts(model):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = Transformer(ModelConfig(11, model.width, model.layers, model.width // 64, 4 * model.width))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 128, dtype=torch.long, device="meta"), logits_at=torch.zeros(0, dtype=torch.long, device="meta"))
    assert counter.get_total_flops() == 128 * operations(model)


def test_a_format_that_the_processor_lacks_is_no_error(monkeypatch):
    def packed(weight, bias, dtype):
        if dtype == torch.bfloat16:
            raise RuntimeError("mkldnn_bf16 needs avx512")
        return linear.Packed(weight, bias, dtype)

    monkeypatch.setattr(doctor, "Packed", packed)
    found = said(0.01)
    assert "bf16 none" in found["product"].found and found["dtype"].figures == {"advice": "fp32", "ratio": 0.0}
    monkeypatch.setattr(doctor, "Packed", lambda weight, bias, dtype: packed(weight, bias, torch.bfloat16))
    assert said(0.01)["product"].found == "can't be measured"


def test_a_slow_product_is_left_after_a_few_rows(monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "_timed", lambda call, device: asked.append(1) or 5.0)
    examine(seconds=0.5)
    assert len(asked) == 4                                             # two widths, two formats


# Threads and containers

@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/x\n0::/", "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000",
          "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "200000"}, 2.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ({}, None),
    ],
)  # fmt: skip
def test_the_limit_of_a_container_is_seen_in_both_versions(kernel, files, quota):
    kernel(files)
    assert cores().quota == quota


def test_threads_beside_a_container_s_limit(kernel, monkeypatch):
    """Unset OMP_NUM_THREADS where a container has fewer cores than its host: torch starts a thread for each of the host's."""
    kernel({"sys/fs/cgroup/cpu.max": "200000 100000"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    found = said()
    assert "a container's limit of 2" in found["cores"].found and "OMP_NUM_THREADS is not set" in found["threads"].found
    assert found["threads"].advice == "set OMP_NUM_THREADS=2: of 8 cores this container may use 2; more threads only wait"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert said()["threads"].advice is None


@pytest.mark.parametrize(
    ("threads", "usable", "written", "advice"),
    [(8, 8, None, None), (1, 8, "1", "set OMP_NUM_THREADS=8, unless"), (8, 3, None, "set OMP_NUM_THREADS=3: this process may run on 3"),
     (8, 8, "many", "OMP_NUM_THREADS is no number: set it to 8"), (8, 8, "", "OMP_NUM_THREADS is no number"), (8, 8, "8", None)],
)  # fmt: skip
def test_threads_without_one(kernel, monkeypatch, threads, usable, written, advice):
    kernel({}, usable)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if written is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", written)
    found = said()["threads"]
    assert (found.advice or "").startswith(advice) if advice else found.advice is None
    assert f"{threads} for products" in found.found


def test_two_logical_cores_may_be_one(kernel):
    names = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    kernel({names.format(one): f"{one % 4},{one % 4 + 4}" for one in range(8)})
    assert cores() == Cores(8, 8, 4, None) and cores().best == 4
    assert Cores(8, 8, 4, 2.5).best == 2 and Cores(8, 8, None, 0.5).best == 1 and Cores(8, 3, None, None).best == 3


def test_memory_has_a_limit_where_it_is_less_than_the_machine_s(kernel):
    kernel({"proc/meminfo": "MemTotal:  33554432 kB\nMemFree:  1 kB\nMemAvailable:  16777216 kB", "sys/fs/cgroup/memory.max": "8589934592"})
    assert said()["memory"].found == "32.0 GB, 16.0 GB free, a container's limit of 8.0 GB"
    kernel({"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)})
    assert said()["memory"].found == "32.0 GB, 16.0 GB free"


# Processors, GPUs, other systems

@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("model name\t: A B\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16", "A B: AVX2, AVX-512, AVX-512 BF16, AMX; bf16 is native; "),
        ("model name\t: Old\nflags\t\t: fpu avx2", "Old: AVX2; bf16 is not native; "),
        ("Features\t: fp asimd sve bf16", ": NEON, SVE, BF16; bf16 is native; "),
        ("flags\t\t: fpu", ": no vector units known; bf16 is not native; "),
    ],
)
def test_the_processor_is_what_the_kernel_says(kernel, info, says):
    kernel({"proc/cpuinfo": info})
    assert says in said()["processor"].found


def test_a_gpu_that_torch_does_not_see(kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    kernel({})
    assert said()["gpu"] == Finding("gpu", "none")
    kernel({"proc/driver/nvidia/version": "NVRM"})
    monkeypatch.setattr(torch.version, "cuda", None)
    assert said()["gpu"].advice == "install a CUDA build of torch"
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert said()["gpu"].advice.startswith("update the driver") and "CUDA 12.8" in said()["torch"].found
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "Apple" in said()["gpu"].found


def test_gpus_are_named(monkeypatch):
    facts = SimpleNamespace(name="NVIDIA H200", total_memory=140 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    assert said()["gpu"].found == "cuda:0 NVIDIA H200, 140.0 GB, capability 9.0, bf16 is native"


def test_a_system_without_the_kernel_s_files_and_calls(kernel, monkeypatch):
    kernel({})
    for name in ("sched_getaffinity", "sysconf", "getloadavg"):
        monkeypatch.delattr(os, name, raising=False)
    found = said(0.01)
    assert found["memory"].found == "not known" and found["cores"].found == "8 logical, physical: not known"
    assert "bf16 is not native" in found["processor"].found and found["product"].advice is None


def test_a_busy_machine_is_said(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 0, 0))
    if not torch.cuda.is_available():
        assert said(0.01)["product"].advice == "measure again when the machine is idle: its load is 100.0"
        monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0, 0))
        assert said(0.01)["product"].advice is None


# Places and packages

def test_the_environment_is_seen(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert said()["hub"].found == "http://localhost:9, offline"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert said()["hub"].found == "the default hub"
    assert "not set" in said()["data"].found
    monkeypatch.setenv("FISHPAW_DATA", str(tmp_path))
    assert "no such file" in said()["data"].found and said()["data"].advice


def test_models_are_where_the_hub_puts_them(monkeypatch, tmp_path):
    (tmp_path / "home" / "hub" / "models--a--b").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert said()["models"].figures["models"] == 1 and str(tmp_path / "home" / "hub") in said()["models"].found
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nowhere" / "yet"))
    assert said()["models"].found.startswith(f"{tmp_path / 'nowhere' / 'yet'}: 0 models, ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert said()["cache"].found == str(tmp_path / "cache" / "fishpaw")


def test_the_product_taken_and_who_says_so(monkeypatch):
    linear.path.cache_clear()
    monkeypatch.setenv("FISHPAW_LINEAR", "plain")
    assert said()["linear"].found == "plain prepared, plain in training (as FISHPAW_LINEAR says: plain)"
    linear.path.cache_clear()
    monkeypatch.setenv("FISHPAW_LINEAR", "fast")
    assert said()["linear"].found == "FISHPAW_LINEAR is 'fast'." and said()["linear"].advice
    assert said(0.01)["product"].found == "can't be measured" or torch.cuda.is_available()
    monkeypatch.delenv("FISHPAW_LINEAR")
    linear.path.cache_clear()
    assert "linear.json" in said()["linear"].found
    linear.path.cache_clear()


def test_what_is_missing_has_advice(monkeypatch):
    there = importlib.util.find_spec
    extras = {"jieba": "zh", "sentencepiece": "spm", "jinja2": "chat", "h5py": "h5"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in extras else there(name))
    told = {subject: (one.found, one.advice) for subject, one in said().items() if subject in extras}
    assert told == {name: ("not installed", f'pip install "fishpaw[{extra}]"') for name, extra in extras.items()}


def test_packages_have_versions_and_each_extra_is_declared(monkeypatch):
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(fishpaw.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package, extra in doctor._EXTRAS.items():
        wanted = doctor._DISTRIBUTIONS.get(package, package)
        assert any(one.startswith(wanted) for one in project["optional-dependencies"][extra]), package
    assert said()["numpy"].found[0].isdigit()

    def unknown(name):
        raise doctor.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(doctor.importlib.metadata, "version", unknown)
    assert said()["numpy"].found == "installed"


def test_no_network_is_touched(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    examine(seconds=0.01)
