"""docs/*/distributed.md: the script runs as it stands, with one process and with two, which go on with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

PAGES = Path(__file__).resolve().parent.parent.parent / "docs"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]


def script(language: str) -> str:
    found = re.search(r"```python\n(.*?)```", (PAGES / language / "distributed.md").read_text(encoding="utf-8"), re.S)
    assert found
    return found[1]


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs torch with gloo")
@pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="needs the loopback device by its Linux name")
def test_torchrun_launches_it_and_one_process_is_given_the_result(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(script("en"), encoding="utf-8")
    for before in (TORCHRUN, []):
        command = [sys.executable, *before, "train.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1 and 0 < float(done.stdout) < 5
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (lines[0]["event"], lines[0]["processes"]) == ("start", 2) and (lines[-1]["event"], lines[-1]["step"]) == ("end", 20)
    assert len({json.dumps(line) for line in lines}) == len(lines)   # one process writes


def test_both_languages_show_the_same_script() -> None:
    bare = [re.sub(r"\s*#.*", "", script(language)) for language in ("en", "zh")]
    assert bare[0] == bare[1]
