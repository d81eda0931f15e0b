"""plant(name=source, …): analyses for a test, in a folder that the lab finds beside its own; `only` hides the others."""

from __future__ import annotations

import sys

import pytest

import fishpaw.lab

HEAD = '"""A planted analysis."""\nfrom fishpaw.lab.findings import Found, Row, Words, sampled\nTITLE = Words("Planted", "种下的")\n' \
    'SOURCE = "https://kexue.fm/archives/1"\n'


@pytest.fixture
def plant(tmp_path, monkeypatch):
    def put(*, only: bool = False, **sources: str):
        folder = tmp_path / "planted"
        folder.mkdir(exist_ok=True)
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source if source.startswith('"""') else HEAD + source, encoding="utf-8")
            monkeypatch.delitem(sys.modules, f"fishpaw.lab.{name}", raising=False)
            monkeypatch.delattr(fishpaw.lab, name, raising=False)
            named.append(name)
        monkeypatch.setattr(fishpaw.lab, "__path__", [str(folder)] if only else [*fishpaw.lab.__path__, str(folder)])
        return folder

    named: list[str] = []
    yield put
    for name in named:                                               # what the test imported
        sys.modules.pop(f"fishpaw.lab.{name}", None)
        vars(fishpaw.lab).pop(name, None)
