"""dev.py: what it would run, without running it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Machine:
    """Stands for an environment: `torch` is the version that imports there ("" for none); commands are only recorded."""

    def __init__(self, dev: ModuleType, torch: str, has_pip: bool) -> None:
        self.dev, self.torch, self.has_pip, self.commands = dev, torch, has_pip, []

    def output(self, code: str) -> str:
        return self.torch if "torch" in code else "26" * self.has_pip

    def require(self, command: list[str]) -> None:
        self.commands.append(command[1:])
        if "venv" in command:
            self.dev.VENV.mkdir(parents=True)
            self.has_pip = True
        for word in command:
            if word.startswith("torch=="):
                self.torch = word.removeprefix("torch==")

    def call(self, arguments: list[str]) -> int:
        self.commands.append(arguments)
        return 7


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(torch=…, has_pip=…) -> dev.py as a module that runs nothing, with its Machine."""
    for name in ("TORCH_SPEC", "FISHPAW_VENV"):
        monkeypatch.delenv(name, raising=False)

    def begin(torch: str = "", has_pip: bool = False) -> tuple[ModuleType, Machine]:
        spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
        assert spec and spec.loader
        dev = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(dev)
        dev.VENV = tmp_path / "environment with spaces"
        dev.PYTHON = Path(sys.executable)
        if has_pip:
            dev.VENV.mkdir()
        machine = Machine(dev, torch, has_pip)
        for name in ("output", "require", "call"):
            monkeypatch.setattr(dev, name, getattr(machine, name))
        return dev, machine

    return begin


def pinned(dev: ModuleType) -> list[str]:
    return (dev.VENV / "fishpaw-constraints.txt").read_text(encoding="utf-8").splitlines()


def test_fresh_machine_gets_environment_torch_and_package_in_this_order(start):
    dev, machine = start()
    assert dev.main(["demo", "--seed", "3"]) == 7                    # the child's exit code
    venv, torch, package, demo = machine.commands
    assert venv[:2] == ["-m", "venv"]
    assert torch[-1] == next(line for line in dev.constraints() if line.startswith("torch=="))
    assert package[-2:] == ["-e", str(ROOT)] and "-c" in package     # the demo needs no extra
    assert demo == ["-m", "fishpaw", "demo", "--seed", "3"]


def test_second_run_installs_nothing(start):
    dev, machine = start()
    dev.main(["test"])
    machine.commands.clear()
    assert dev.main(["demo"]) == 7 and dev.main(["test"]) == 7       # an environment for tests runs the demo, too
    assert [command[1] for command in machine.commands] == ["fishpaw", "pytest"]


def test_environment_for_the_demo_is_not_enough_for_tests(start):
    dev, machine = start(torch="2.13.0", has_pip=True)
    dev.main(["demo"])
    machine.commands.clear()
    dev.main(["test"])
    assert machine.commands[0][-1] == f"{ROOT}[zh,onnx,plot,test,parity]"


def test_installed_torch_is_kept_by_a_constraint_on_its_own_version(start):
    dev, machine = start(torch="2.12.1+cu126", has_pip=True)
    dev.main(["demo"])
    assert not any("venv" in command for command in machine.commands)
    assert not any(word.startswith("torch") for command in machine.commands for word in command)
    assert pinned(dev)[0] == "torch==2.12.1+cu126"
    assert pinned(dev)[1:] == [line for line in dev.constraints() if not line.startswith("torch==")]


def test_torch_spec_chooses_the_torch(start, monkeypatch):
    monkeypatch.setenv("TORCH_SPEC", "torch==2.11.0")
    dev, machine = start()
    dev.main(["demo"])
    assert machine.commands[1][-1] == "torch==2.11.0" and pinned(dev)[0] == "torch==2.11.0"


def test_a_change_of_dependencies_or_a_move_installs_again(start, monkeypatch, tmp_path):
    dev, machine = start(torch="2.13.0", has_pip=True)
    dev.main(["demo"])
    assert dev.is_ready("demo")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    assert not dev.is_ready("demo")                                  # another checkout
    dev.stamp("demo").write_text(dev.digest(), encoding="utf-8")
    assert dev.is_ready("demo")
    with (tmp_path / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("einops==0.9\n")
    assert not dev.is_ready("demo")


def test_interrupted_installation_is_begun_again(start, monkeypatch):
    dev, machine = start(torch="2.13.0", has_pip=True)

    def fail(command: list[str]) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(dev, "require", fail)
    with pytest.raises(SystemExit):
        dev.main(["demo"])
    assert not dev.is_ready("demo")


@pytest.mark.parametrize(("options", "marks"), [([], "not slow and not gpu"), (["--quick"], "not slow and not gpu and not parity")])
def test_options_reach_pytest_after_ours(start, options, marks):
    dev, _ = start()
    command = dev.test([*options, "-m", "gpu", "-k", "rotary"])
    assert command[command.index("-m", 2) + 1] == marks
    assert command[-4:] == ["-m", "gpu", "-k", "rotary"] and "--quick" not in command


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["tset"], 2), (["--help"], 0)])
def test_without_a_command_it_says_how(start, capsys, arguments, code):
    dev, machine = start()
    assert dev.main(arguments) == code and not machine.commands
    said = capsys.readouterr()
    assert "python3 dev.py demo" in (said.err if code else said.out)


def test_old_python_gets_a_sentence_and_can_parse_the_file(start, monkeypatch, capsys):
    ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    dev, machine = start()
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 18, "final", 0))
    assert dev.main(["demo"]) == 2 and not machine.commands
    assert "Python 3.11 or newer; this is Python 3.9" in capsys.readouterr().err


def test_failing_command_ends_with_its_code(start, monkeypatch, capsys):
    dev, _ = start()
    monkeypatch.undo()
    with pytest.raises(SystemExit) as end:
        dev.require([sys.executable, "-c", "raise SystemExit(5)"])
    assert end.value.code == 5 and "exit code 5" in capsys.readouterr().err
