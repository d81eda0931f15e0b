"""The log: whole lines, cut back to any earlier moment; the bar: shown where it should be."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.errors import FishpawError
from fishpaw.train.log import Bar, Log


def test_lines_after_the_offset_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    said: list[dict[str, Any]] = []
    log = Log(path, report=said.append)
    log.write({"step": 1, "text": "鱼"})
    offset = log.sync()
    log.write({"step": 2})
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "torn')
    log = Log(path, offset=offset)
    assert not log.is_shortened
    log.write({"step": 2})
    log.close()
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [{"step": 1, "text": "鱼"}, {"step": 2}]
    assert said == [{"step": 1, "text": "鱼"}, {"step": 2}]
    log = Log(path)
    log.close()
    assert path.read_bytes() == b""


def test_a_log_that_was_cut_short_is_kept_and_said(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    log = Log(path, offset=999)
    assert log.is_shortened
    log.write({"step": 2})
    log.close()
    assert len(path.read_bytes().splitlines()) == 2


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.write({"loss": math.nan, "norm": -math.inf, "nested": {1: [math.inf, Path("a")]}, "version": torch.__version__, "text": "\ud800"})
    log.close()

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    line = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"), parse_constant=refuse)
    assert line == {"loss": "nan", "norm": "-inf", "nested": {"1": ["inf", "a"]}, "version": str(torch.__version__), "text": "?"}


def test_without_a_path_only_the_reporter_hears(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    log = Log(None, report=said.append)
    log.write({"step": 1})
    assert (said, log.sync()) == ([{"step": 1}], 0)
    log.close()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FishpawError, match="log.jsonl: can't be written"):
        Log(tmp_path / "file" / "log.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which is Linux'")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = Log(tmp_path / "log.jsonl")
    with pytest.raises(FishpawError, match="log.jsonl: can't be written .No space left on device"):
        log.write({"step": 1})
    log.close()


def test_the_bar_is_shown_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for shown, terminal, wanted in ((None, False, False), (None, True, True), (True, False, True), (False, True, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        bar = Bar(7, start=3, shown=shown)
        bar.tell({"loss": 0.5})
        bar.advance()
        bar.close()
        said = capsys.readouterr()
        assert said.out == "" and ("4/7" in said.err) == wanted and ("loss=0.5" in said.err) == wanted
