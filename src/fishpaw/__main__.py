"""The program `fishpaw`, also as `python -m fishpaw`: Ctrl-C ends it with one word from its first import on."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the program; exit codes: cli/program.py."""
    try:
        from fishpaw.cli import program  # here: imports take a second in which a user may think again

        program.main()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("fishpaw: stopped.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
