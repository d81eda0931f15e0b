"""`python -m fishpaw` is the same program as `fishpaw`."""

from __future__ import annotations

from fishpaw.cli.program import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
