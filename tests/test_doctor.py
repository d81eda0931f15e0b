"""The doctor's findings: all there, in order, with advice exactly where something is missing."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import fishpaw
from fishpaw.doctor import examine


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("FISHPAW_DATA", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def found() -> dict[str, str]:
    return {one.subject: one.found for one in examine()}


def test_says_what_there_is():
    said = found()
    assert [*said][:7] == ["fishpaw", "python", "torch", "threads", "processor", "hub", "data"] and [*said][-1] == "next"
    assert said["fishpaw"] == fishpaw.__version__ and said["torch"].startswith(torch.__version__)
    assert all(said.values())


def test_the_environment_is_seen(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert found()["hub"] == "http://localhost:9, offline"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert found()["hub"] == "the default hub"
    assert "not set" in found()["data"]
    monkeypatch.setenv("FISHPAW_DATA", str(tmp_path))
    (data,) = [one for one in examine() if one.subject == "data"]
    assert "no such file" in data.found and data.advice


def test_what_is_missing_has_advice(monkeypatch):
    there = importlib.util.find_spec
    extras = {"jieba": "zh", "sentencepiece": "spm", "jinja2": "chat", "h5py": "h5"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in extras else there(name))
    told = {one.subject: (one.found, one.advice) for one in examine() if one.subject in extras}
    assert told == {name: ("not installed", f'pip install "fishpaw[{extra}]"') for name, extra in extras.items()}


def test_a_torch_that_does_not_tell_about_bf16_is_no_error(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert "no fast bf16" in found()["processor"]
