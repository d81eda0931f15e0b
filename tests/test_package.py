"""The package as it is shipped: public names, one version, declared dependencies, documents in two languages, no hosts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fishpaw

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fishpaw"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE_OF = {"sklearn": "scikit-learn", "PIL": "pillow"}                             # where the name to import isn't the name to install
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAIRS = [("README.md", "README_zh.md"),
         *((f"docs/en/{path.name}", f"docs/zh/{path.name}") for path in sorted((ROOT / "docs/en").glob("*.md")))]


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# Names

@pytest.mark.parametrize("name", sorted({*fishpaw.__all__} - {"__version__"}))
def test_each_public_name_is_found_where_type_checkers_look(name):
    """The table that runs and the imports that type checkers read say the same."""
    module, attribute = fishpaw._PLACES[name]
    told = {f"{node.module}.{alias.name}" for node in ast.walk(ast.parse(read("src/fishpaw/__init__.py")))
            if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert (f"{module}.{attribute}" if attribute else module) in told
    found = import_module(module)
    assert getattr(fishpaw, name) is (getattr(found, attribute) if attribute else found)


def test_dir_lists_the_public_names():
    assert {*fishpaw.__all__} <= {*dir(fishpaw)} and "__name__" in dir(fishpaw)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="ModelConfig"):
        _ = fishpaw.nothing
    assert not hasattr(fishpaw, "__wrapped__")                       # what inspect and doctest ask for


def test_python_m_fishpaw_is_the_program():
    done = subprocess.run([sys.executable, "-m", "fishpaw", "--help"], capture_output=True, encoding="utf-8", cwd=SOURCE.parent, timeout=60)
    assert done.returncode == 0 and "Usage" in done.stdout, done.stderr


def test_package_is_typed_and_has_one_version():
    assert (SOURCE / "py.typed").exists()
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+", fishpaw.__version__)
    assert f"## {fishpaw.__version__}" in read("CHANGELOG.md")


# Dependencies

def imported(folder: Path) -> set[str]:
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
    return {PACKAGE_OF.get(name, name) for name in names} - {*sys.stdlib_module_names, "fishpaw"}


def declared(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def test_the_package_imports_what_it_declares_and_declares_what_it_imports(tmp_path):
    assert imported(SOURCE) <= {*declared("zh", "spm", "h5", "chat", "onnx", "ray", "plot")}
    (tmp_path / "planted.py").write_text("def f():\n    import einops.layers\n", encoding="utf-8")
    assert imported(tmp_path) == {"einops"}


def test_each_dependency_has_a_version_that_ci_proves_and_that_the_package_allows():
    pins = {pin.name: pin for pin in map(Requirement, (line for line in read("constraints.txt").splitlines() if not line.startswith("#")))}
    requirements = declared(*PROJECT["optional-dependencies"])
    assert {*pins} == {*requirements}
    for name, pin in pins.items():
        (version,) = pin.specifier
        assert version.operator == "==" and requirements[name].specifier.contains(version.version), pin


def test_no_index_host_or_local_version_is_named():
    for name in ("pyproject.toml", "constraints.txt", "dev.py"):
        assert not re.search(r"https?://|index-url|find-links|==\S+\+", read(name)), name
    assert re.search(r"==\S+\+", "torch==2.13.0+cpu")                # planted


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_dependency_is_explained(language):
    text = read(f"docs/{language}/dependencies.md")
    assert not [name for name in declared(*PROJECT["optional-dependencies"]) if f"`{name}`" not in text]


# Documents

@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda name: name)
def test_documents_stand_side_by_side(english, chinese):
    """The same headings, tables and code blocks, in the same order."""
    def shape(name: str) -> list[str]:
        return [mark.group() for line in read(name).splitlines() if (mark := re.match(r"#+ |```\w*|\|", line))]

    assert shape(english) == shape(chinese)


def test_no_document_in_one_language_only():
    assert {path.name for path in (ROOT / "docs/zh").glob("*.md")} == {path.name for path in (ROOT / "docs/en").glob("*.md")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_readme_begins_with_the_two_commands(name):
    blocks = re.findall(r"```text\n(.*?)```", read(name), re.S)
    assert [line.split("  ")[0].strip() for line in blocks[0].splitlines()] == ["python3 dev.py demo", "python3 dev.py test"]
