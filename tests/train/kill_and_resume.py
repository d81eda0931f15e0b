"""Kill a training run with SIGKILL at random moments, go on each time, and compare with the run that was left alone: bit for bit.

    python tests/train/kill_and_resume.py --kills 20            at random moments, in the middle of steps, evaluations and saves
    python tests/train/kill_and_resume.py --every 1             once before each single file operation of a short run
    python tests/train/kill_and_resume.py --kills 4 --forget    planted fault: random states aren't put back; must find a difference

Prints one line of JSON; exits 1 if anything differs. The toy of the other tests of this folder is here, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from fishpaw.data.fingerprint import fingerprint
from fishpaw.losses.classification import cross_entropy
from fishpaw.train.loop import Result, fit
from fishpaw.train.options import Options
from fishpaw.train.randomness import Randomness

DRAW = random.Random(7)
EXAMPLES = [[DRAW.randrange(1, 31) for _ in range(DRAW.randrange(2, 17))] for _ in range(101)]
OPTIONS = Options(epochs=4, batch_size=7, learning_rate=0.01, accumulate=2, evaluate_every=5, save_every=1, log_every=3, seed=3)
Batch = dict[str, Tensor]


class Toy(nn.Module):
    """Mean of embeddings, norm, dropout, a tied layer, a buffer that counts calls."""

    calls: Tensor

    def __init__(self, width: int = 13) -> None:
        super().__init__()
        self.embedding = nn.Embedding(31, width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.output = nn.Linear(width, 31, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        hidden = self.norm(self.embedding(ids).mean(1))
        hidden = nn.functional.dropout(self.inner(hidden), 0.3, self.training)
        logits: Tensor = self.output(hidden)[:, :3]
        return logits


def collate(rows: list[list[int]]) -> Batch:
    """Pads, and replaces some tokens at random, with each of the three generators: as masked language models do."""
    width = max(map(len, rows))
    noise = random.random() + numpy.random.rand() + torch.rand(()).item()
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    ids[torch.rand(ids.shape) < 0.02 * noise] = 0
    return {"ids": ids, "labels": torch.tensor([sum(row) % 3 for row in rows])}


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return cross_entropy(model(batch["ids"]), batch["labels"])


def evaluate(model: nn.Module) -> dict[str, float]:
    torch.rand(5)                                                    # an evaluation that draws must not change the training
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in EXAMPLES], batch_first=True)
    labels = torch.tensor([sum(row) % 3 for row in EXAMPLES])
    total, count = loss(model, {"ids": ids, "labels": labels})
    return {"accuracy": float((model(ids).argmax(-1) == labels).double().mean()), "loss": float(total.detach() / count)}


def train(out: Path | None, options: Options = OPTIONS, *, width: int = 13, **changes: Any) -> tuple[Toy, Result]:
    """One run of the toy, from weights that are always the same."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = Toy(width)
    arguments: dict[str, Any] = {"loss": loss, "collate": collate, "evaluate": evaluate, "monitor": "-loss", "progress": False, **changes}
    return model, fit(model, arguments.pop("examples", EXAMPLES), options=options, out=out, **arguments)


def essence(out: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock or on how often the run was interrupted."""
    clock = {"seconds", "tokens_per_second", "utilisation"}
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in clock} for line in lines if line["event"] not in ("resume", "stop")]


def differing(here: Path, there: Path) -> list[str]:
    """Names of what differs between two runs that have ended: weights, optimiser, random states, best weights, log."""
    files = ["checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", "checkpoint/random.safetensors", "best/model.safetensors"]
    found = [name for name in files if (here / name).read_bytes() != (there / name).read_bytes()]
    return found + ["log.jsonl"] * (essence(here) != essence(there))


def start(out: Path, arguments: argparse.Namespace, *, last: int | None = None) -> Callable[[], int | None]:
    """Train in a child; returns its pid-like handle: call it to poll the exit code, None while it runs."""
    if not hasattr(os, "fork"):
        command = [sys.executable, __file__, "--child", str(out), "--epochs", str(arguments.epochs), *["--forget"] * arguments.forget]
        child = subprocess.Popen(command)
        return _handle(child.poll, child.kill)
    pid = os.fork()                                                  # the parent never computed anything: no threads to lose
    if pid == 0:
        os._exit(_child(out, arguments, last))

    def poll() -> int | None:
        done, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None

    return _handle(poll, lambda: os.kill(pid, signal.SIGKILL))


def _handle(poll: Callable[[], int | None], kill: Callable[[], None]) -> Callable[[], int | None]:
    poll.kill = kill  # type: ignore[attr-defined]
    return poll


def _child(out: Path, arguments: argparse.Namespace, last: int | None) -> int:
    """Exit code of a run; with `last`, the process vanishes before that file operation."""
    if arguments.forget:
        Randomness.put = lambda self, device: None  # type: ignore[method-assign]
    changed = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
    left = last if last is not None else -1

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        if event in changed and str(out) in str(given[0]):
            left -= 1
            if left == 0:
                os._exit(99)

    if last is not None:
        sys.addaudithook(count)
    train(out, Options(**{**vars(OPTIONS), "epochs": arguments.epochs}), width=arguments.width, digest=fingerprint(EXAMPLES))
    return 0


def wait(poll: Callable[[], int | None], seconds: float) -> int | None:
    """The exit code, None if it still runs after that time."""
    end = time.monotonic() + seconds
    while (code := poll()) is None and time.monotonic() < end:
        time.sleep(0.0005)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--every", type=int, default=0, help="kill before each n-th file operation")
    parser.add_argument("--forget", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--width", type=int, default=251)
    parser.add_argument("--child", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        return _child(arguments.child, arguments, None)
    torch.optim.AdamW([torch.zeros(1)])                              # imports torch._dynamo: a second that each child would pay
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        began = time.monotonic()
        if wait(start(whole, arguments), 600) != 0:
            return 1
        alone = time.monotonic() - began
        many = at_every_operation if arguments.every else at_random_moments
        said, bad = many(Path(folder), whole, alone, arguments)
        print(json.dumps({**said, "undisturbed_seconds": round(alone, 2), "differing": bad}))
        return 1 if bad else 0


def at_random_moments(folder: Path, whole: Path, alone: float, arguments: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    draw = random.Random(arguments.seed)
    kills = in_saves = runs = 0
    bad: list[str] = []
    while kills < arguments.kills or not runs:
        out = folder / f"run-{runs}"
        while True:
            poll = start(out, arguments)
            code = wait(poll, draw.uniform(0, 0.5 * alone) if kills < arguments.kills else 600)
            if code is None:
                poll.kill()  # type: ignore[attr-defined]
                wait(poll, 60)
                kills += 1
                in_saves += any((out / f".{name}.{part}").exists() for name in ("checkpoint", "best") for part in ("new", "old", "trash"))
            elif code != 0:
                return {"kills": kills, "runs": runs}, [f"run {runs} ended with code {code}"]
            else:
                break
        bad += [f"run {runs}: {name}" for name in differing(whole, out)]
        runs += 1
    return {"kills": kills, "kills_in_saves": in_saves, "runs": runs}, bad


def at_every_operation(folder: Path, whole: Path, alone: float, arguments: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    bad: list[str] = []
    kills, last = 0, 1
    while True:
        out = folder / f"run-{last}"
        if wait(start(out, arguments, last=last), 600) == 0:          # it has fewer operations than that
            return {"kills": kills, "operations": last - 1}, bad
        kills += 1
        if wait(start(out, arguments), 600) != 0:
            return {"kills": kills}, [*bad, f"operation {last}: could not go on"]
        bad += [f"operation {last}: {name}" for name in differing(whole, out)]
        last += arguments.every


if __name__ == "__main__":
    sys.exit(main())
