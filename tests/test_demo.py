"""The demo: says what it does, draws the curve, and ends with a command that works as it stands."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

import fishpaw
from fishpaw.demo import BLANKS, NEW, SENTENCES, curve, data_folder, demo, reviews
from fishpaw.errors import DataError


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.delenv("FISHPAW_DATA", raising=False)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    said: list[str] = []
    out = tmp_path_factory.mktemp("a run") / "它"                    # a blank and a letter that shells leave alone only in quotes
    return said, demo(said.append, out=out, steps=3), out


def test_tells_each_stage_and_the_curve_to_its_end(told):
    said, figures, out = told
    assert said[0].startswith("Model: fishpaw-small, ")
    assert {text for text in (*BLANKS, *SENTENCES[:4]) if any(text in line for line in said)} == {*BLANKS, *SENTENCES[:4]}
    assert any(re.match(r"Data: 480 reviews written for fishpaw.*100 unseen", line) for line in said)
    points = [re.fullmatch(r"  step +(\d+)  loss (\d\.\d{3})  accuracy (\d\.\d{3}) (█+)", line) for line in said]
    found = [(int(point[1]), float(point[3]), len(point[4])) for point in points if point]
    assert [step for step, _, _ in found] == [1, 2, 3]
    assert all(bar == round(40 * accuracy) for _, accuracy, bar in found)
    (line,) = [line for line in said if line.startswith("Unseen")]
    assert f"accuracy {figures['accuracy']:.3f}" in line and f"{figures['majority']:.3f}" in line
    for text in NEW:
        assert [line for line in said if re.fullmatch(rf"  (neg|pos) [01]\.\d\d  {text}", line)]
    assert figures["steps"] == 3 and (out / "model" / "manifest.json").is_file()


@pytest.mark.skipif(os.name == "nt", reason="another shell")
def test_the_command_at_the_end_works_when_pasted(told, tmp_path):
    said, _, _ = told
    done = subprocess.run(["sh", "-c", said[-1]], cwd=tmp_path, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])})  # fmt: skip
    label, _, text = done.stdout.decode("utf-8").rstrip("\n").split("\t")
    assert done.returncode == 0 and text == NEW[0]
    assert [line for line in said if line.startswith(f"  {label} ") and line.endswith(text)]


def test_the_log_holds_the_same_curve(told):
    said, _, out = told
    records = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line for line in map(curve, records) if line] == [line for line in said if line.startswith("  step")]


def test_curve_without_an_accuracy_and_of_other_events():
    assert curve({"event": "step", "step": 3, "loss": 1.0}) is None
    assert curve({"event": "evaluate", "step": 3, "train_loss": 0.25}) == "  step     3  loss 0.250"


@pytest.mark.parametrize("packed", [False, True])
def test_a_data_folder_is_used_and_named(tmp_path, packed):
    folder = tmp_path / "classification" / "sentiment_bert4keras"
    folder.mkdir(parents=True)
    for part, count in (("train", 60), ("valid", 4)):
        text = "".join(f"第{number}条{'坏好'[number % 2]}\t{number % 2}\n" for number in range(count)).encode()
        path = folder / f"sentiment.{part}.data"
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text)) if packed else path.write_bytes(text)
    found = reviews(tmp_path)
    assert len(found.train) == 60 and len(found.unseen) == 4 and str(folder) in found.source
    assert {label for one in found.train for label in one.labels} == {"neg", "pos"}


def test_a_data_folder_without_the_reviews_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("FISHPAW_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(DataError, match=r"sentiment\.train\.data: no such file, nor sentiment\.train\.data\.gz\.") as caught:
        reviews(data_folder())
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("FISHPAW_DATA", "")
    assert data_folder() is None


def test_the_shared_reviews_can_be_read(data_folder):
    found = reviews(data_folder)
    assert len(found.train) > 10000 and {label for one in found.unseen for label in one.labels} == {"neg", "pos"}
