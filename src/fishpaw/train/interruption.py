"""Ctrl-C and SIGTERM as a wish that a loop grants at its next safe point; the second one acts at once, as it would without us."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

__all__ = ["Interruption"]


class Interruption:
    """While entered, the first SIGINT or SIGTERM is only noted in `received`. Handlers are the caller's again after it, and on leaving.

    Does nothing outside the main thread (signals never arrive there) and leaves ignored signals ignored (nohup).
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                former = signal.getsignal(number)
                if former is not None and former != signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._give_back()

    def act(self) -> None:
        """Raise what was noted: KeyboardInterrupt for Ctrl-C (exit code 130), SystemExit(143) for SIGTERM. Nothing if nothing was."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._give_back()

    def _give_back(self) -> None:
        while self._former:
            number, former = self._former.popitem()
            signal.signal(number, former)
