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

__all__ = ["Finding", "examine"]

_EXTRAS = {"jieba": "zh", "sklearn": "recipes", "transformers": "parity"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and the next step where something is missing."""

    subject: str
    found: str
    advice: str | None = None


def examine() -> list[Finding]:
    """Everything worth knowing before a report of a fault, in a fixed order."""
    findings = [
        Finding("fishpaw", __version__),
        Finding("python", f"{platform.python_version()} ({sys.platform}, {platform.machine()})"),
        Finding("torch", f"{torch.__version__}, {_device()}"),
        Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        Finding("processor", f"{torch.backends.cpu.get_cpu_capability()}, {_bf16()}"),
        Finding("hub", os.environ.get("HF_ENDPOINT", "the default hub") + (", offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "")),
    ]
    for package in ("numpy", "safetensors", "tokenizers", "huggingface_hub"):
        findings.append(Finding(package, importlib.metadata.version(package)))
    for package, extra in _EXTRAS.items():
        held = importlib.util.find_spec(package) is not None
        findings.append(Finding(package, "installed" if held else "not installed", None if held else f'pip install "fishpaw[{extra}]"'))
    return findings


def _device() -> str:
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}"
    return "Apple GPU" if torch.backends.mps.is_available() else "no GPU"


def _bf16() -> str:
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "fast bf16" if quick else "no fast bf16: train and compute in fp32"
