"""Parts: computed once, read again, computed anew where settings differ or the file is damaged, nothing left by a part that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fishpaw.lab.parts import part


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"numbers": (1.5, 2.5), "name": "圆"}


def test_a_part_is_computed_once_and_is_the_same_when_read(tmp_path: Path) -> None:
    compute = Counted()
    first, known = part(tmp_path, "no stop-gradient, 3", {"size": (1, 2)}, compute)
    again, known_then = part(tmp_path, "no stop-gradient, 3", {"size": (1, 2)}, compute)
    assert (first, known, known_then, compute.calls) == (again, False, True, 1)
    assert first == {"numbers": [1.5, 2.5], "name": "圆"}
    assert [path.name for path in tmp_path.iterdir()] == ["no-stop-gradient-3.json"]


def test_other_settings_and_damaged_files_are_computed_anew(tmp_path: Path) -> None:
    compute = Counted()
    part(tmp_path, "one", {"seed": 0}, compute)
    assert not part(tmp_path, "one", {"seed": 1}, compute)[1] and compute.calls == 2
    (tmp_path / "one.json").write_text("{", encoding="utf-8")
    assert not part(tmp_path, "one", {"seed": 1}, compute)[1] and compute.calls == 3
    (tmp_path / "one.json").write_text('{"settings": {"seed": 1}}', encoding="utf-8")
    assert not part(tmp_path, "one", {"seed": 1}, compute)[1] and compute.calls == 4
    assert part(tmp_path, "one", {"seed": 1}, compute)[1]


def test_a_part_that_was_stopped_or_gave_no_number_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part(tmp_path, "one", {}, stopped)
    with pytest.raises(ValueError, match="JSON"):
        part(tmp_path, "one", {}, lambda: {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
