"""What all tests share: one thread, no network, fixed seeds, and the data folder where there is one."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch or huggingface_hub is imported: both read them once. Subprocesses that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")                    # pytest-xdist already uses every core
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONUTF8"] = "1"

# Where they are started in the background of a script, Ctrl-C is ignored, and so it would be in every process that a test stops by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Slow machines aren't failures, and a red run must be red again: no deadline, the same examples each time.
settings.register_profile("fishpaw", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("fishpaw")


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """Seed what is loaded, so that tests give the same result alone and in any order."""
    random.seed(0)
    for name in ("numpy", "torch"):
        module: Any = sys.modules.get(name)
        if module is not None:
            (module.random.seed if name == "numpy" else module.manual_seed)(0)


@pytest.fixture(autouse=True, scope="session")
def refuse_the_network() -> Iterator[None]:
    """Only this machine answers; everything else fails at once, as it does offline."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not _is_here(address[0]):
            raise OSError(errno.ENETUNREACH, f"tests use no network: {address[0]}")
        connect(self, address)

    def resolve_here(host: Any, *rest: Any, **options: Any) -> Any:
        if host is not None and not _is_here(host):
            raise socket.gaierror(socket.EAI_NONAME, f"tests use no network: {host}")
        return getaddrinfo(host, *rest, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", connect_here)
    patch.setattr(socket, "getaddrinfo", resolve_here)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that FISHPAW_DATA names; the test is skipped where there is none."""
    name = os.environ.get("FISHPAW_DATA")
    if not name or not Path(name).is_dir():
        pytest.skip("FISHPAW_DATA names no folder")
    return Path(name)


def _is_here(host: Any) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    return name in ("", "localhost", "::1", "0.0.0.0", "::") or name.startswith("127.")
