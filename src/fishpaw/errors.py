"""The errors that a user can cause, each with the next step to take. Nothing else is ever caught on the user's behalf."""

from __future__ import annotations

__all__ = ["CheckpointError", "ConfigError", "DataError", "FishpawError", "HubError"]


class FishpawError(Exception):
    """One clear sentence: what was wrong and where; `fix` says what to do next. The program exits with `exit_code`.

    >>> raise DataError("reviews.tsv, line 7: no tab between text and label.", fix="Write text<TAB>label on each line.")
    """

    exit_code = 2

    def __init__(self, what: str, *, fix: str) -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.fix)        # errors cross process boundaries (data workers)


class ConfigError(FishpawError, ValueError):
    """A configuration that can't be built: an unknown key, a value out of range, two switches that exclude each other."""


class CheckpointError(FishpawError):
    """A file of weights that is damaged, incomplete, unsafe or of another model."""


class DataError(FishpawError, ValueError):
    """A text, a record or a label that can't be used; names the file, the line and the field."""


class HubError(FishpawError):
    """A model that could not be fetched: offline, unknown, or damaged on the way."""

    exit_code = 3


def _rebuild(kind: type[FishpawError], what: str, fix: str) -> FishpawError:
    return kind(what, fix=fix)
