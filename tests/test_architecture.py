"""The plan of the house, kept by machine: ranks, cycles, sizes, names, tests, habits, and what an import brings.

Each check reads a source tree and yields complaints. Each is run on ours, which must have none, and on planted trees, which must have one.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RANKS = {
    0: "contracts config switch errors checks files activations",
    1: "masks norms metrics hub text data positions attention losses optim",
    2: "model",
    3: "weights",
    4: "decoding train interpret",
    5: "tasks xiangqi",
    6: "lab serve demo doctor terminal",
    7: "cli",
    8: "__main__",
}
RANK = {room: rank for rank, rooms in RANKS.items() for room in rooms.split()}
VAGUE = {"util", "utils", "common", "misc", "helper", "helpers", "base"}
LONGEST = 500
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOAD_MAY_IMPORT = "import torch, numpy, safetensors.torch, tokenizers"

Tree = tuple[Path, Path]                                             # the package's folder, the tests' folder


# What a tree holds

def modules(package: Path) -> dict[str, Path]:
    """Dotted name inside the package -> file; the package itself is the empty name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_init(path: Path) -> bool:
    return path.name == "__init__.py"


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name or "") of each import of ours, wherever it stands: in functions and under TYPE_CHECKING, too."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            if source.split(".")[0] in ("", "fishpaw"):
                yield from ((node.lineno, source, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names if alias.name.split(".")[0] == "fishpaw")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and isinstance(node.args[0], ast.Constant):
            name = str(node.args[0].value)
            if name.split(".")[0] == "fishpaw":
                yield node.lineno, name, ""


def leaf(known: dict[str, Path], module: str, name: str) -> str | None:
    """The module of ours that an import reaches; None where it reaches a package's `__init__` or nothing."""
    inside = module.removeprefix("fishpaw").removeprefix(".")
    for candidate in (".".join(filter(None, (inside, name))), inside):
        if candidate in known and not is_init(known[candidate]):
            return candidate
    return None


# Checks of the plan

def check_leaves(tree: Tree) -> Iterator[str]:
    known = modules(tree[0])
    for name, path in known.items():
        for line, module, what in imports(path):
            if module.startswith("."):
                yield f"{path}:{line}: a relative import; write fishpaw.…"
            elif leaf(known, module, what) is None and (module, what) != ("fishpaw", "__version__") and not (is_init(path) and not name):
                yield f"{path}:{line}: {module} {what} is a package's __init__, or nothing; import the file that defines it"


def check_ranks(tree: Tree) -> Iterator[str]:
    known = modules(tree[0])
    for name, path in known.items():
        room = name.split(".")[0]
        if room and room not in RANK:
            yield f"{path}: {room} has no rank; give it one here and in docs/en/architecture.md"
            continue
        for line, module, what in imports(path):
            target = leaf(known, module, what)
            if not room or target is None:                           # the package's own __init__ may name everything
                continue
            other = target.split(".")[0]
            siblings = room == other or (path.parent == known[target].parent == tree[0] and RANK[other] == RANK[room])
            if not siblings and RANK.get(other, 99) >= RANK[room]:
                yield f"{path}:{line}: {room} (rank {RANK[room]}) imports {target} (rank {RANK.get(other)})"


def check_cycles(tree: Tree) -> Iterator[str]:
    known = modules(tree[0])
    edges = {name: sorted({found for _, module, what in imports(path) if (found := leaf(known, module, what))} - {name})
             for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> Iterator[str]:
        if name in trail:
            yield "a cycle: " + " -> ".join((*trail[trail.index(name):], name))
        elif name not in done:
            for following in edges[name]:
                yield from walk(following, (*trail, name))
            done.add(name)

    for name in edges:
        yield from walk(name, ())


def check_inits_only_name(tree: Tree) -> Iterator[str]:
    """An `__init__` runs whenever a file below it is imported: it may name things for type checkers and on demand, and do nothing."""
    for path in filter(is_init, modules(tree[0]).values()):
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) or isinstance(node, ast.FunctionDef) and node.name not in ("__getattr__", "__dir__"):
                yield f"{path}:{node.lineno}: {node.name} belongs into a file"
            outside = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            outside += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            for name in outside:
                if name.split(".")[0] not in sys.stdlib_module_names:
                    yield f"{path}:{node.lineno}: {name} is imported at once; name it under TYPE_CHECKING and in __getattr__"


def check_lengths(tree: Tree) -> Iterator[str]:
    for path in modules(tree[0]).values():
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > LONGEST:
            yield f"{path}: {count} lines; at most {LONGEST}"


def check_names(tree: Tree) -> Iterator[str]:
    for name, path in modules(tree[0]).items():
        if VAGUE & {*name.split(".")}:
            yield f"{path}: this name says nothing; put the code beside its first user"


def check_each_has_a_test(tree: Tree) -> Iterator[str]:
    for path in modules(tree[0]).values():
        folder = tree[1] / path.relative_to(tree[0]).parent
        names = (f"test_{path.stem}.py", f"test_{path.stem}_*.py")
        if path.name not in ("__init__.py", "__main__.py") and not any(list(folder.glob(name)) for name in names):
            yield f"{path}: no {folder / names[0]}"


# Checks of habits

def check_heads(tree: Tree) -> Iterator[str]:
    for path in modules(tree[0]).values():
        body = parse(path)
        text = path.read_text(encoding="utf-8")
        if not ast.get_docstring(body) or not text.startswith('"""'):
            yield f"{path}: the first line says what the file computes"
        if "from __future__ import annotations\n" not in text and len(body.body) > 1:
            yield f"{path}: from __future__ import annotations is missing"
        if not is_init(path) and not any(isinstance(node, ast.Name) and node.id == "__all__" for node in ast.walk(body)):
            yield f"{path}: __all__ is missing"


def check_prints(tree: Tree) -> Iterator[str]:
    for path, call in calls(tree):
        if ast.unparse(call.func) == "print" and path.parent != tree[0] / "cli":
            yield f"{path}:{call.lineno}: only cli/ prints"


def check_swallowed_options(tree: Tree) -> Iterator[str]:
    for path in modules(tree[0]).values():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg and node.args.kwarg.arg in ("kwargs", "kw", "_"):
                yield f"{path}:{node.lineno}: **{node.args.kwarg.arg} swallows a misspelt option"


def check_swallowed_errors(tree: Tree) -> Iterator[str]:
    """A handler of every error must end by raising: to clean up, or to name what a library raised as a bare Exception."""
    for path in modules(tree[0]).values():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler):
                kinds = "BaseException" if node.type is None else ast.unparse(node.type)
                if {"Exception", "BaseException"} & {*kinds.strip("()").split(", ")} and not isinstance(node.body[-1], ast.Raise):
                    yield f"{path}:{node.lineno}: swallows every error"


def check_nothing_runs_foreign_code(tree: Tree) -> Iterator[str]:
    for path, call in calls(tree):
        name, given = ast.unparse(call.func), {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            yield f"{path}:{call.lineno}: torch.load without weights_only=True"
        module, _, function = name.rpartition(".")
        if module in UNPICKLERS and function in ("load", "loads", "Unpickler", "open"):
            yield f"{path}:{call.lineno}: {name} runs what the file says"
        if name in ("eval", "exec", "os.system", "os.popen") or given.get("shell") == "True" or given.get("trust_remote_code") == "True":
            yield f"{path}:{call.lineno}: {name} runs what it is given"


def check_encodings(tree: Tree) -> Iterator[str]:
    for path, call in calls(tree):
        name = ast.unparse(call.func)
        module, _, function = name.rpartition(".")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        place, binary = {"open": (0 if module else 1, "r"), "fdopen": (1, "r"), "NamedTemporaryFile": (0, "w+b"),
                         "TextIOWrapper": (99, "r"), "read_text": (99, "r"), "write_text": (99, "w")}.get(function, (-1, ""))
        if place < 0 or module in ("os", "tarfile", "zipfile", "webbrowser", "Image") and function == "open":
            continue
        if module in ("gzip", "bz2", "lzma", "codecs", "io"):
            place, binary = 1, binary if module in ("codecs", "io") else "rb"
        mode = given.get("mode", call.args[place] if place < len(call.args) else ast.Constant(binary))
        texts = [part.value for part in ast.walk(mode) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if "encoding" not in given and not (texts and all("b" in text for text in texts)):
            if not (function in ("read_text", "write_text") and len(call.args) > (function == "write_text")):
                yield f'{path}:{call.lineno}: {name} without encoding="utf-8"'


def calls(tree: Tree) -> Iterator[tuple[Path, ast.Call]]:
    for path in modules(tree[0]).values():
        yield from ((path, node) for node in ast.walk(parse(path)) if isinstance(node, ast.Call))


# Each check on our tree, and on a planted one

HEAD = '"""A planted file."""\n\nfrom __future__ import annotations\n\n__all__: list[str] = []\n'
PLANTED: list[tuple[Callable[[Tree], Iterator[str]], dict[str, str], str]] = [
    (check_leaves, {"text/__init__.py": '"""P."""', "model/block.py": "from fishpaw.text import Tokenizer"}, "__init__"),
    (check_leaves, {"model/block.py": "import fishpaw"}, "__init__"),
    (check_leaves, {"model/block.py": "from fishpaw.model.nowhere import thing"}, "or nothing"),
    (check_leaves, {"model/block.py": "from .cache import Cache", "model/cache.py": ""}, "relative"),
    (check_ranks, {"attention/softmax.py": "from fishpaw.model.block import Block", "model/block.py": ""}, "rank 2"),
    (check_ranks, {"attention/softmax.py": "def late():\n    from fishpaw import masks", "masks.py": ""}, "rank 1"),
    (check_ranks, {"masks.py": "if True:\n    import fishpaw.attention.softmax", "attention/softmax.py": ""}, "rank 1"),
    (check_ranks, {"config.py": "import importlib\nimportlib.import_module('fishpaw.cli.fill')", "cli/fill.py": ""}, "rank 7"),
    (check_ranks, {"cellar/wine.py": ""}, "no rank"),
    (check_cycles, {"text/a.py": "from fishpaw.text.b import x", "text/b.py": "from fishpaw.text import c",
                    "text/c.py": "def f():\n    from fishpaw.text.a import y"}, "text.a -> text.b -> text.c -> text.a"),
    (check_inits_only_name, {"text/__init__.py": "class Tokenizer: pass"}, "Tokenizer"),
    (check_inits_only_name, {"text/__init__.py": "from fishpaw.text.wordpiece import WordPiece"}, "at once"),
    (check_lengths, {"text/long.py": "x = 1\n" * (LONGEST + 1)}, "at most"),
    (check_names, {"text/utils.py": ""}, "says nothing"),
    (check_names, {"helpers/wordpiece.py": ""}, "says nothing"),
    (check_each_has_a_test, {"text/wordpiece.py": ""}, "test_wordpiece.py"),
    (check_heads, {"masks.py": "__all__ = []"}, "first line"),
    (check_heads, {"masks.py": '"""Says it."""\n__all__ = []'}, "annotations"),
    (check_heads, {"masks.py": '"""Says it."""\nfrom __future__ import annotations\n'}, "__all__"),
    (check_prints, {"masks.py": "def f():\n    print(1)"}, "only cli/"),
    (check_swallowed_options, {"masks.py": "def f(a, **kwargs): pass"}, "misspelt"),
    (check_swallowed_errors, {"masks.py": "try:\n    f()\nexcept:\n    pass"}, "every error"),
    (check_swallowed_errors, {"masks.py": "try:\n    f()\nexcept (OSError, Exception) as error:\n    g(error)"}, "every error"),
    (check_nothing_runs_foreign_code, {"masks.py": "import torch\ntorch.load('x')"}, "weights_only"),
    (check_nothing_runs_foreign_code, {"masks.py": "import torch\ntorch.load('x', weights_only=False)"}, "weights_only"),
    (check_nothing_runs_foreign_code, {"masks.py": "import pickle\npickle.loads(b'')"}, "runs what"),
    (check_nothing_runs_foreign_code, {"masks.py": "eval('1')"}, "runs what"),
    (check_encodings, {"masks.py": "open('x')"}, "encoding"),
    (check_encodings, {"masks.py": "open('x', 'w')"}, "encoding"),
    (check_encodings, {"masks.py": "path.open('a')"}, "encoding"),
    (check_encodings, {"masks.py": "path.read_text()"}, "encoding"),
    (check_encodings, {"masks.py": "path.write_text('x')"}, "encoding"),
    (check_encodings, {"masks.py": "gzip.open('x', 'rt')"}, "encoding"),
]
LEGAL = """
import pickle
from fishpaw import __version__
def f(path, a, **options):
    try:
        return open(path, "rb"), path.open("rb"), gzip.open(path), path.read_text(encoding="utf-8"), open(path, encoding="utf-8")
    except (OSError, pickle.UnpicklingError):
        return torch.load(path, weights_only=True)
    except Exception as error:
        raise ValueError from error
"""
CHECKS = sorted({check for check, _, _ in PLANTED}, key=lambda check: check.__name__)


def plant(folder: Path, files: dict[str, str], head: str = HEAD) -> Tree:
    for name, text in {"__init__.py": HEAD, **files}.items():
        path = folder / "src" / "fishpaw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith('"""') else head + text, encoding="utf-8")
    return folder / "src" / "fishpaw", folder / "tests"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_tree_is_as_planned(check):
    complaints = list(check((ROOT / "src" / "fishpaw", ROOT / "tests")))
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(("check", "files", "says"), PLANTED, ids=lambda part: getattr(part, "__name__", None))
def test_a_planted_fault_is_found(check, files, says, tmp_path):
    complaints = list(check(plant(tmp_path, files, head="" if check is check_heads else HEAD)))
    assert any(says in complaint for complaint in complaints), complaints


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_is_legal_passes(check, tmp_path):
    tree = plant(tmp_path, {"masks.py": LEGAL, "norms.py": "from fishpaw.masks import f\nfrom fishpaw import errors", "errors.py": ""})
    for name in ("masks", "norms", "errors"):
        path = tmp_path / "tests" / f"test_{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("", encoding="utf-8")
    assert not list(check(tree))


# What an import brings

def outsiders(code: str, source: Path) -> set[str]:
    """The packages outside the standard library and fishpaw that are loaded after this code, in a fresh Python."""
    lines = ["import json, sys", "before = {name.split('.')[0] for name in sys.modules}", code,
             "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules} - before)))"]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return {name for name in json.loads(done.stdout.splitlines()[-1]) if name not in sys.stdlib_module_names and name != "fishpaw"}


def test_import_fishpaw_brings_no_package_and_a_planted_one_is_seen(tmp_path):
    assert outsiders("import fishpaw", ROOT / "src") == set()
    package, _ = plant(tmp_path, {"__init__.py": '"""P."""\nimport numpy\n'})
    assert "numpy" in outsiders("import fishpaw", package.parent)


@pytest.mark.parametrize("arguments", [["--help"]], ids=" ".join)
def test_program_answers_without_torch(arguments):
    code = [f"sys.argv = ['fishpaw', *{arguments}]", "from fishpaw.cli import main",
            "try:", "    main()", "except SystemExit as end:", "    assert not end.code"]
    assert not {"torch", "numpy", "tokenizers", "transformers"} & outsiders("\n".join(code), ROOT / "src")


def test_load_brings_only_four_packages_and_what_they_bring():
    allowed = outsiders(LOAD_MAY_IMPORT, ROOT / "src")
    assert outsiders("import fishpaw\nfishpaw.load, fishpaw.load_model", ROOT / "src") <= allowed
    assert not outsiders("import fishpaw\nfishpaw.load\nimport rich", ROOT / "src") <= allowed             # planted
