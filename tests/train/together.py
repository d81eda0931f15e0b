"""Train one small Transformer with one process and with two, end the two in every way, and say what came of it.

    python tests/train/together.py equal_replicated killed …         the scenarios at the end of this file; one line of JSON

Processes are forked from one that has imported torch and keeps the store, as torchrun's agent does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed.fsdp  # noqa: F401  # seconds that each process would pay
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import DataError, FishpawError
from fishpaw.losses.generation import masked_cross_entropy
from fishpaw.model.transformer import Transformer
from fishpaw.optim.derive import derive
from fishpaw.optim.lamb import lamb
from fishpaw.optim.muon import muon
from fishpaw.optim.transforms import Lazy
from fishpaw.train import checkpoint
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

DRAW = numpy.random.default_rng(7)
EXAMPLES = [DRAW.integers(1, 31, DRAW.integers(2, 17)).tolist() for _ in range(41)]
OPTIONS = Options(steps=50, batch_size=5, learning_rate=3e-3, accumulate=2, clip=0.5, seed=3, log_every=7, save_every=6,
                  evaluate_every=20, threads=1)  # fmt: skip
SHAPE = ModelConfig(
    vocab_size=31, hidden_size=14, layers=2, attention_heads=2, intermediate_size=22, dropout=0.0, attention_dropout=0.0, init_std=0.3,
    heads=("pooler", "nsp", "mlm"), biases=("output", "feed_forward"),
)  # fmt: skip
"""Without biases of keys: their gradient is 0 but for rounding, which Adam makes as large as any other."""

Loss = Callable[[nn.Module, Batch], tuple[Tensor, Any]]


def collate(rows: list[list[int]]) -> Batch:
    return Batch.packed([torch.tensor(row) for row in rows])


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Some rows ask the pooler, too, so that it is used in one process and not in the other; nsp is never asked."""
    output = model(batch)
    total, count = masked_cross_entropy(output.logits, batch.ids * 3 % 31)
    odd = batch.ids[batch.first] % 4 == 1
    return (total + output.pooled[odd].square().sum() if bool(odd.any()) else total), count


def mean_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Planted: each process' part weighs the same, however many tokens it has."""
    total, count = loss(model, batch)
    return total / count, 1


def evaluate(model: nn.Module) -> dict[str, float]:
    total, count = loss(model, collate(EXAMPLES))
    return {"loss": float(total / count)}


def train(out: Path, *, dropout: float = 0.0, using: Loss = loss, shape: ModelConfig = SHAPE, **changes: Any) -> Transformer:
    """One run in this process, which may be one of several; the weights that come of it are in out/last.safetensors."""
    torch.manual_seed(1 + int(os.environ.get("RANK", "0")))          # another model in each process: the leader's counts
    model = Transformer(dataclasses.replace(shape, dropout=dropout))
    before = dict(model.named_parameters())
    options = dataclasses.replace(OPTIONS, **{name: changes.pop(name) for name in [*changes] if name in OPTIONS.__dataclass_fields__})
    given: dict[str, Any] = {"loss": using, "collate": collate, "evaluate": evaluate, "monitor": "-loss", "progress": False, **changes}
    result = fit(model, EXAMPLES, options=options, out=out, **given)
    assert all(p is before[name] and type(p) is nn.Parameter for name, p in model.named_parameters())
    evaluate(model)                                                  # alone: nobody else is called for
    if os.environ.get("RANK", "0") == "0":
        save_file({name: tensor.clone() for name, tensor in checkpoint.weights(model).items()}, out / "last.safetensors")
        (out / "result.json").write_text(json.dumps([result.step, result.resumed_from, result.best, len(result.history)]), encoding="utf-8")
    return model


def start(work: Callable[[], object], size: int, said: Path) -> tuple[list[int], Any]:
    """Fork so many processes; their pids, and the store that must live as long. said: where their standard error goes."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os._exit(_child(work, rank, size, store.port, said))
        pids.append(pid)
    return pids, store


def _child(work: Callable[[], object], rank: int, size: int, port: int, said: Path) -> int:
    if size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="test", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip
    torch.set_num_threads(1)
    with open(said, "a", buffering=1, encoding="utf-8") as file, contextlib.redirect_stderr(file):
        try:
            work()
        except FishpawError as error:
            file.write(f"{error}\n")
            return error.exit_code
        except KeyboardInterrupt:
            return 130
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException:                                        # the parent must see it
            traceback.print_exc(file=file)
            return 1
    return 0


def ended(pids: list[int], seconds: float = 60) -> list[int]:
    """Exit codes, a signal's as its negative; what still runs after that time is killed and counts as 999."""
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    codes[pid] = 999
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def run(out: Path, size: int, **changes: Any) -> dict[str, Any]:
    """Exit codes and what was said."""
    out.mkdir(parents=True, exist_ok=True)
    said = out.with_suffix(".said")
    pids, _store = start(lambda: train(out, **changes), size, said)
    codes = ended(pids)
    return {"codes": codes, "said": said.read_text(encoding="utf-8")}


def gap(here: Path, there: Path) -> float:
    one, two = (load_file(folder / "last.safetensors") for folder in (here, there))
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def after(calls: int, act: Callable[[], Any], *, rank: str = "1") -> Loss:
    """The loss, which does something else in that call of one process."""
    left = calls

    def acting(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        nonlocal left
        left -= 1
        total, count = loss(model, batch)
        if left == 0 and os.environ.get("RANK", "0") == rank:
            factor = act()
            return (total if factor is None else total * factor), count
        return total, count

    return acting


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def last(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]))


# Scenarios: each gets an empty folder

def equal(folder: Path, **changes: Any) -> dict[str, Any]:
    """One process, two replicas, two shards."""
    found: dict[str, Any] = {"alone": run(folder / "alone", 1, **changes)}
    for way in ("replicated", "sharded"):
        found[way] = run(folder / way, 2, parallel=way, **changes)
        found[way]["gap"] = gap(folder / "alone", folder / way)
        found[way]["result"] = json.loads((folder / way / "result.json").read_text(encoding="utf-8"))
    ends = load_file(folder / "alone" / "last.safetensors")
    found["moved"] = {name: float((tensor - START[name]).abs().max()) for name, tensor in ends.items()}
    return found


def equal_adamw(folder: Path) -> dict[str, Any]:
    """And two that take a mean of means."""
    found = equal(folder)
    run(folder / "planted", 2, using=mean_loss)
    return {**found, "planted": gap(folder / "alone", folder / "planted")}


def equal_lamb(folder: Path) -> dict[str, Any]:
    return equal(folder, optimizer=lambda model: lamb(model, learning_rate=0.01), accumulate=1)


def killed(folder: Path) -> dict[str, Any]:
    """Killed on n processes, gone on with m."""
    short: dict[str, Any] = {"steps": 20, "evaluate_every": 20}
    run(folder / "alone", 1, **short)
    found: dict[str, Any] = {}
    for before, then, way in ((1, 2, "replicated"), (2, 1, "replicated"), (2, 2, "sharded"), (2, 1, "sharded"), (1, 2, "sharded")):
        out = folder / f"{before}-{then}-{way}"
        first = run(out, before, using=after(17, die, rank=str(before - 1)), parallel=way, **short)
        second = run(out, then, parallel=way, **short)
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        found[out.name] = {"first": first, "codes": second["codes"], "resumed": result[1], "gap": gap(folder / "alone", out)}
    return found


def drawn(folder: Path) -> dict[str, Any]:
    """With dropout: two processes go on to the same bits as two that were left alone."""
    run(folder / "whole", 2, dropout=0.3, steps=20)
    run(folder / "parts", 2, dropout=0.3, steps=20, using=after(17, die))
    run(folder / "parts", 2, dropout=0.3, steps=20)
    names = ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", "best/model.safetensors", "last.safetensors")
    return {"same": [(folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes() for name in names]}


def redrawn(folder: Path) -> dict[str, Any]:
    """FAVOR+ that draws anew every third call, of which each process has its own number: the same bits after a kill."""
    attention = {"name": "performer", "redraw": 3, "seed": 1, "features": 8}
    shape = dataclasses.replace(SHAPE, attention=attention, position="rotary", head_size=6)
    options = {"steps": 8, "parallel": "sharded", "evaluate": None, "monitor": "accuracy", "save_every": 3, "shape": shape}
    run(folder / "whole", 2, **options)
    run(folder / "parts", 2, using=after(11, die), **options)
    run(folder / "parts", 2, **options)
    return {"gap": gap(folder / "whole", folder / "parts")}


def failing(folder: Path) -> dict[str, Any]:
    """A loss that is no number, and examples that can't be used, in one process."""
    nan = run(folder / "nan", 2, using=after(9, lambda: math.nan))
    facts = json.loads((folder / "nan" / "bad_batch" / "facts.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"nan": nan, "rows": facts["rows"], "event": last(folder / "nan")}
    found["again"] = run(folder / "nan", 2)

    def spoiled(rows: list[list[int]]) -> Batch:
        if os.environ.get("RANK") == "1" and EXAMPLES[11] in rows:
            raise DataError("Example 11 is bad.", fix="Mend it.")
        return collate(rows)

    for way in ("replicated", "sharded"):
        found[way] = run(folder / way, 2, collate=spoiled, parallel=way)
    found["muon"] = run(folder / "muon", 2, optimizer=lambda model: muon(model, learning_rate=0.01), parallel="sharded")
    lazy = lambda model: derive(torch.optim.SGD(model.named_parameters(), lr=0.1), [Lazy()])  # noqa: E731
    found["lazy"] = run(folder / "lazy", 2, optimizer=lazy, parallel="sharded")
    return found


def stopped(folder: Path) -> dict[str, Any]:
    """SIGTERM to one process, Ctrl-C to the other one."""
    found: dict[str, Any] = {}
    run(folder / "whole", 2, steps=12)
    for rank, number in (("1", signal.SIGTERM), ("0", signal.SIGINT)):
        out = folder / f"{number.name}"
        first = run(out, 2, steps=12, save_every=None, using=after(9, lambda number=number: os.kill(os.getpid(), number), rank=rank))
        event = last(out)
        run(out, 2, steps=12)
        found[number.name] = {**first, "event": event, "gap": gap(folder / "whole", out)}
    return found


def disagreeing(folder: Path) -> dict[str, Any]:
    """Processes that were given different runs."""
    def other() -> object:
        return train(folder / "data", digest=os.environ["RANK"])

    pids, _store = start(other, 2, folder / "data.said")
    return {"codes": ended(pids), "said": (folder / "data.said").read_text(encoding="utf-8")}


SCENARIOS = {one.__name__: one for one in (equal_adamw, equal_lamb, killed, drawn, redrawn, failing, stopped, disagreeing)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.optim.AdamW([torch.zeros(1)])                              # imports torch._dynamo
    torch.manual_seed(1)
    START = {name: tensor.clone() for name, tensor in checkpoint.weights(Transformer(SHAPE)).items()}
    answers = {}
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as temporary:
            began = time.monotonic()
            answers[name] = {**SCENARIOS[name](Path(temporary)), "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(answers))
