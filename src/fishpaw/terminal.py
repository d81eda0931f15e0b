"""What the program says: results on stdout, as they are and in UTF-8; everything else on stderr, above the progress bar if there is one."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["beside_a_bar", "decoded", "in_options", "leave", "show_warning", "tell", "write", "write_figures", "write_json"]

_OPTIONS = (
    "accumulate", "alone", "batch_size", "beams", "consistent", "contrastive_alpha", "contrastive_k", "dry", "epochs", "epsilon",
    "eta", "evaluate_every", "frequency_penalty", "layer", "learning_rate", "length", "length_penalty", "log_every", "margin", "max_length",
    "max_new", "min_new", "min_p", "n", "no_repeat_ngram", "patience", "precision", "presence_penalty", "rank", "repetition_penalty",
    "sample", "samples", "steps", "temperature", "threshold", "token_budget", "top", "top_k", "top_p", "typical", "unit", "warmup",
    "weight_decay",
)  # fmt: skip
_BEFORE = "|".join(["^", *(rf"(?<=\b{word} )" for word in ("Raise", "Lower", "lower", "Change", "Leave", "but", "and", "for"))])
_NAMED = re.compile(rf"(?:{_BEFORE})(?:{'|'.join(_OPTIONS)})(?= is | at | and |,? or |\.(?: |$)| exclude )")
_SPELLED = {
    'mask="causal"': "--mask causal", 'mask="unilm"': "--mask unilm", 'family="t5_encoder"': "--family t5_encoder",
    "resume=False; --restart": "--restart", "(max_new)": "(--max-new)", "Set beams to 4": "Add --beams 4",
    "Set contrastive_k to 5": "Add --contrastive-k 5", "Set sample.": "Add --sample; in a chat leave out --beams and --contrastive-k.",
    "Use greedy for the most probable token.": "Raise it.",
}  # fmt: skip


def write(line: str, *, end: str = "\n") -> None:
    """To stdout, at once. Not typer.echo, which drops what looks like a colour from a user's text."""
    if sys.stdout is None:                                           # closed by the caller: `>&-`
        return
    try:
        sys.stdout.write(line + end)
        sys.stdout.flush()
    except BrokenPipeError:                                          # the reader, `head` for example, has seen enough
        leave(0)
    except OSError as error:
        tell(f"fishpaw: standard output: can't be written ({error.strerror}).")
        leave(2)


def write_json(value: dict[str, Any]) -> None:
    """One line of JSON."""
    write(json.dumps(value, ensure_ascii=False))


def write_figures(figures: dict[str, Any], as_json: bool) -> None:
    """Name and value a line, what is None left out; or one line of JSON with everything."""
    if as_json:
        write_json(figures)
        return
    for name, value in figures.items():
        if value is not None:
            write(f"{name:12} {value:.4f}" if isinstance(value, float) else f"{name:12} {value}")


def tell(line: str) -> None:
    """To stderr."""
    if sys.stderr is not None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def beside_a_bar(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, or on a terminal, where a progress bar may stand, the same above the bar."""
    if sys.stderr is None or not sys.stderr.isatty():
        return say
    from tqdm.auto import tqdm

    def above(line: str) -> None:
        with tqdm.external_write_mode():
            say(line)

    return above


def show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """For warnings.showwarning: what is wrong, without the line of code that noticed it."""
    tell(f"fishpaw: {message}")


def in_options(message: str) -> str:
    """What the library says of its arguments, in the spelling of the options: "max_new is 0" is --max-new, mask="causal" --mask causal.
    A name is one where a sentence begins with it, or behind one of a few words: texts of the user's stay as they are."""
    for written, option in _SPELLED.items():
        message = message.replace(written, option)
    return _NAMED.sub(lambda found: "--" + found[0].replace("_", "-"), message)


def decoded(text: str) -> str:
    """An argument as UTF-8, whatever the locale made of its bytes."""
    if os.name == "nt" or sys.getfilesystemencoding() == "utf-8":
        return text
    return os.fsencode(text).decode("utf-8", "replace")


def leave(code: int) -> NoReturn:
    """End with an exit code, and without a complaint of Python's about a stdout that can't be flushed any more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
