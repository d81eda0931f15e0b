"""What this machine offers: torch's build, threads, number formats, extras; and what to do where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass

import torch

from fishpaw import __version__
from fishpaw.demo import data_folder, reviews
from fishpaw.errors import FishpawError

__all__ = ["Finding", "examine"]

_EXTRAS = {"jieba": "zh", "sentencepiece": "spm", "jinja2": "chat", "h5py": "h5", "onnxruntime": "onnx", "sklearn": "recipes",
           "transformers": "parity"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and the next step where something is missing."""

    subject: str
    found: str
    advice: str | None = None


def examine() -> list[Finding]:
    """Everything worth knowing before a report of a fault, in a fixed order; the next command to try at the end."""
    findings = [
        Finding("fishpaw", __version__),
        Finding("python", f"{platform.python_version()} ({sys.platform}, {platform.machine()})"),
        Finding("torch", f"{torch.__version__}, {_device()}"),
        Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        Finding("processor", f"{torch.backends.cpu.get_cpu_capability()}, {_bf16()}"),
        Finding("hub", (os.environ.get("HF_ENDPOINT") or "the default hub") + (", offline" if _is_offline() else "")),
        _data(),
    ]
    for package in ("numpy", "safetensors", "tokenizers", "huggingface_hub", "typer", "tqdm"):
        findings.append(Finding(package, importlib.metadata.version(package)))
    for package, extra in _EXTRAS.items():
        held = importlib.util.find_spec(package) is not None
        findings.append(Finding(package, "installed" if held else "not installed", None if held else f'pip install "fishpaw[{extra}]"'))
    findings.append(Finding("next", "fishpaw demo: train, evaluate, predict and save in a minute"))
    return findings


def _device() -> str:
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}"
    return "Apple GPU" if torch.backends.mps.is_available() else "no GPU"


def _data() -> Finding:
    """The folder that the demo trains on."""
    try:
        named = data_folder()
        return Finding("data", reviews(named).source if named else "FISHPAW_DATA is not set: the demo uses the bundled reviews")
    except FishpawError as error:
        return Finding("data", error.what, error.fix)


def _is_offline() -> bool:
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in {"1", "ON", "YES", "TRUE"}


def _bf16() -> str:
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))     # not in each torch
    quick = any(ask is not None and ask() for ask in asked)
    return "fast bf16" if quick else "no fast bf16: train and compute in fp32"
