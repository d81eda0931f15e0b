"""Make the environment, then run: `python3 dev.py demo [options]` or `python3 dev.py test [--quick] [pytest options]`.

Environment variables: FISHPAW_VENV is the folder of the environment (.venv); TORCH_SPEC is what pip is asked for where no torch
is installed there yet (torch and its version in constraints.txt). A torch that already imports there is kept, whichever build it is.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("FISHPAW_VENV") or ROOT / ".venv").expanduser().absolute()
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
EXTRAS = {"demo": "", "test": "[zh,onnx,plot,test,parity]"}
ENOUGH = {"demo": ("demo", "test"), "test": ("test",)}               # an environment for the tests runs the demo, too
TORCH_VERSION = "import torch, importlib.metadata as metadata; print(metadata.version('torch'))"


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (this file must parse and speak clearly on the Pythons that the package refuses)
        print("fishpaw needs Python 3.11 or newer; this is Python {}.{}. Run dev.py with a newer one, for example "
              "`python3.12 dev.py demo`.".format(*sys.version_info[:2]), file=sys.stderr)
        return 2
    if not arguments or arguments[0] not in EXTRAS:
        print(__doc__.strip(), file=sys.stdout if arguments in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    command, rest = arguments[0], arguments[1:]
    if not is_ready(command):
        install(command)
    return call(demo(rest) if command == "demo" else test(rest))


def demo(rest: list[str]) -> list[str]:
    return ["-m", "fishpaw", "demo", *rest]


def test(rest: list[str]) -> list[str]:
    """Default and parity tests on all cores; the caller's own -m or -n wins. tests/conftest.py sets threads and offline."""
    quick = "--quick" in rest
    marks = "not slow and not gpu" + (" and not parity" if quick else "")
    workers = str(min(os.cpu_count() or 1, 8))                       # each worker holds a torch: 0.3 GB
    return ["-m", "pytest", "-q", "-n", workers, "-m", marks, *(option for option in rest if option != "--quick")]


def install(command: str) -> None:
    """Make what is missing. The stamp is written last: an interrupted installation is begun again."""
    print(f"dev.py: preparing {VENV} (the first time about 1-2 minutes and 1.1 GB; later runs skip this)", flush=True)
    if not output("import pip; print(pip.__version__)"):
        require([sys.executable, "-m", "venv", str(VENV)])
    if not output(TORCH_VERSION):
        print("dev.py: installing torch; another build: TORCH_SPEC, or install torch into that folder first", flush=True)
        require(pip(os.environ.get("TORCH_SPEC") or next(line for line in constraints() if line.startswith("torch=="))))
    print("dev.py: installing fishpaw and what it needs", flush=True)
    kept = "torch==" + output(TORCH_VERSION)                         # else pip would replace a torch that the user chose
    pinned = VENV / "fishpaw-constraints.txt"
    pinned.write_text("\n".join([kept, *(line for line in constraints() if not line.startswith("torch=="))]) + "\n", encoding="utf-8")
    require(pip("-c", str(pinned), "-e", str(ROOT) + EXTRAS[command]))
    stamp(command).write_text(digest(), encoding="utf-8")


def is_ready(command: str) -> bool:
    return PYTHON.exists() and any(stamp(one).is_file() and stamp(one).read_text(encoding="utf-8") == digest() for one in ENOUGH[command])


def stamp(command: str) -> Path:
    return VENV / f"fishpaw-{command}.stamp"


def digest() -> str:
    """Of all that an installation depends on, this folder included: two checkouts may share one environment."""
    parts = [str(ROOT).encode(), (ROOT / "pyproject.toml").read_bytes(), (ROOT / "constraints.txt").read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pip(*what: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]


def output(code: str) -> str:
    """What the environment's Python prints for this code; nothing where it fails or isn't there."""
    if not PYTHON.exists():
        return ""
    return subprocess.run([str(PYTHON), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()


def require(command: list[str]) -> None:
    code = subprocess.call(command)
    if code:
        print(f"dev.py: this command failed with exit code {code}: {' '.join(command)}", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def call(arguments: list[str]) -> int:
    """Run the environment's Python here, in UTF-8 whatever the locale; its exit code is ours (128 + n for signal n)."""
    code = subprocess.call([str(PYTHON), *arguments], cwd=ROOT, env={**os.environ, "PYTHONUTF8": "1"})
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
