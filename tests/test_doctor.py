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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jieba" else there(name))
    (jieba,) = [one for one in examine() if one.subject == "jieba"]
    assert (jieba.found, jieba.advice) == ("not installed", 'pip install "fishpaw[zh]"')


def test_a_torch_that_does_not_tell_about_bf16_is_no_error(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert "no fast bf16" in found()["processor"]
