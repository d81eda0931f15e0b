"""The Python in the documents: it parses, its imports resolve, and each name and option of ours that it uses is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import torch

import fishpaw
from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.translate import read_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
WITH_CODE = [path for path in DOCUMENTS if "```python" in path.read_text(encoding="utf-8")]
NOTHING = object()


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


def complaints(page: list[str]) -> Iterator[str]:
    """What is wrong with the blocks of a page, which share their names, one after another."""
    names: dict[str, Any] = {"fp": fishpaw}
    for block in page:
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from imported(node, names)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and found(node.value, names) is not NOTHING and found(node, names) is NOTHING:
                yield f"no {ast.unparse(node)}"
            elif isinstance(node, ast.Call) and callable(target := found(node.func, names)):
                yield from unknown_options(node, target)


def imported(node: ast.Import | ast.ImportFrom, names: dict[str, Any]) -> Iterator[str]:
    """Put what is imported from fishpaw into `names`; of other packages only the name is looked up."""
    for alias in node.names:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
        if find_spec(module.split(".")[0]) is None:
            yield f"no package {module}"
        elif module.split(".")[0] == "fishpaw":
            try:
                value: Any = import_module(module)
            except ModuleNotFoundError:
                yield f"no module {module}"
                continue
            if isinstance(node, ast.ImportFrom):
                if not hasattr(value, alias.name) and hasattr(value, "__path__") and find_spec(f"{module}.{alias.name}") is not None:
                    import_module(f"{module}.{alias.name}")
                if not hasattr(value, alias.name):
                    yield f"no {alias.name} in {module}"
                    continue
                value = getattr(value, alias.name)
            names[alias.asname or alias.name] = value


def found(node: ast.expr, names: dict[str, Any]) -> Any:
    """The module, class or function of ours that a dotted name stands for; NOTHING for whatever else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, NOTHING)
    if isinstance(node, ast.Attribute) and (owner := found(node.value, names)) is not NOTHING:
        return NOTHING if owner is fishpaw and node.attr not in fishpaw.__all__ else getattr(owner, node.attr, NOTHING)
    return NOTHING


def unknown_options(call: ast.Call, target: Any) -> Iterator[str]:
    parameters = signature(target).parameters
    if not any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values()):
        for keyword in call.keywords:
            if keyword.arg is not None and keyword.arg not in parameters:
                yield f"{ast.unparse(call.func)} has no {keyword.arg}="


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_names_what_there_is(path):
    found_wrong = list(complaints(blocks(path)))
    assert not found_wrong, found_wrong


def test_there_is_code_in_both_languages():
    names = {path.relative_to(ROOT).as_posix() for path in WITH_CODE}
    assert {"README.md", "README_zh.md", "docs/en/python.md", "docs/zh/python.md"} <= names


@pytest.mark.parametrize(("english", "chinese"), [("README.md", "README_zh.md"), *((f"docs/en/{name}", f"docs/zh/{name}")
                                                  for name in sorted(path.name for path in (ROOT / "docs/en").glob("*.md")))])
def test_code_is_the_same_in_both_languages(english, chinese):
    """Comments apart: what is parsed and written again has none."""
    assert [ast.unparse(ast.parse(block)) for block in blocks(ROOT / english)] == \
        [ast.unparse(ast.parse(block)) for block in blocks(ROOT / chinese)]  # fmt: skip


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (["from fishpaw.nowhere import thing"], "no module"),
        (["from fishpaw.errors import Nothing"], "no Nothing"),
        (["import nopackage.inside"], "no package"),
        (["fp.nothing()"], "no fp.nothing"),
        (["fp.tasks.Nothing"], "no fp.tasks.Nothing"),
        (["fp.importlib"], "no fp.importlib"),                       # there, but not public
        (["fp.load('x', masc='causal')"], "no masc="),
        (["from fishpaw.errors import ConfigError as Wrong", "Wrong('what', fiks='how')"], "no fiks="),
    ],
    ids=str,
)
def test_a_planted_fault_is_found(page, says):
    assert any(says in complaint for complaint in complaints(page))
    with pytest.raises(SyntaxError):
        list(complaints(["x = ("]))


def test_changed_vocabularies_layers_and_positions_do_what_the_page_says(tmp_path, monkeypatch, capsys):
    """The last two sections, run as they stand on a small model of twelve layers."""
    vocab = characters(["今天气好鱼与熊掌的abc"], least=1)
    sizes = {"layers": 12, "hidden_size": 8, "attention_heads": 2, "intermediate_size": 9}
    model = Transformer(ModelConfig(vocab_size=len(vocab), heads=("mlm",), **sizes))
    t5 = {"vocab_size": 7, "d_model": 8, "d_kv": 4, "num_heads": 2, "num_layers": 7, "d_ff": 9}
    monkeypatch.setattr(fishpaw, "load_model", lambda name: Transformer(read_config(t5, FAMILIES["mt5"])))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"fp": fishpaw, "model": model, "tokenizer": WordPiece(vocab)}
    for block in blocks(ROOT / "docs/en/python.md")[-2:]:
        exec(block, names)
    assert "['[CLS]', '今', '天', '天气', '好', '[SEP]']" in capsys.readouterr().out
    other, words = fishpaw.load("other/")
    assert words.encode("今天天气好，鱼与熊掌").tokens[1:-1] == ["今", "天", "天气", "好", "[UNK]", "鱼与熊掌"]
    assert torch.equal(other.table[words.vocab.id("天气")], model.table[[vocab.id("天"), vocab.id("气")]].mean(0))
    assert "天气" not in words.decode(words.encode("天气").ids) and "天气" in words.decode(words.encode("天气").ids, skip_special=False)
    assert (names["far"].longest >= 2048, names["between"].longest) == (True, 1024)
    assert (names["fewer"].config.layers, names["albert"].config.blocks, names["apart"].config.blocks) == (6, 1, 12)
    assert names["quicker"].encoder.config.layers == 4 and names["quicker"].config.layers == 7
