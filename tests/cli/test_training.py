"""The end of each verb `train`: lines as they come, figures at the end, and one sentence for Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fishpaw.cli.training import run

RESULT = SimpleNamespace(step=7, stopped="steps", loss=0.5, best=None, best_step=None, seconds=1.0, resumed_from=None)


def curve(record: dict) -> str | None:
    return f"  at {record['step']}" if record["event"] == "evaluate" else None


def test_what_is_told_and_what_is_written(capsys):
    def fit(*, report):
        for event in ("resume", "step", "evaluate"):
            report({"event": event, "step": 3})
        return RESULT

    run(fit, curve, Path("out"), True)
    said = capsys.readouterr()
    assert said.err == "fishpaw: going on from step 3\n  at 3\n"
    assert json.loads(said.out) == {"step": 7, "stopped": "steps", "loss": 0.5, "best": None, "best_step": None, "seconds": 1.0,
                                    "model": str(Path("out") / "model")}  # fmt: skip
    run(lambda report: SimpleNamespace(**{**vars(RESULT), "resumed_from": 7}), curve, Path("out"), False)
    assert "nothing was trained" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_is_one_sentence(capsys, begun):
    def fit(*, report):
        if begun:
            report({"event": "stop", "step": 3})
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(fit, curve, Path("out"), False)
    says = "stopped at step 3; the same command goes on" if begun else "stopped"
    assert (end.value.code, capsys.readouterr()) == (130, ("", f"fishpaw: {says}.\n"))
