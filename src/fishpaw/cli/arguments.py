"""What several verbs are given, and what it stands for: a device, a folder to write, labelled examples, texts of a file or a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fishpaw.errors import ConfigError, DataError
from fishpaw.hub import SMALL
from fishpaw.terminal import decoded, tell

if TYPE_CHECKING:
    import torch

    from fishpaw.data.labelled import LabelledText

__all__ = [
    "Changes", "Data", "Device", "Json", "Limit", "Lines", "Model", "Rows", "Seed", "SkipBad", "changes_of", "check_file", "check_out",
    "check_task", "device_of", "labelled", "located", "parts_of", "refuse_beside", "refuse_tab", "source_of", "texts_of", "with_parts",
]  # fmt: skip

Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a file, a TensorFlow checkpoint or a hub id (owner/name@revision); "
                                    f"{SMALL} comes with fishpaw.")]  # fmt: skip
Data = Annotated[str, typer.Option("--data", "-d", help="A .tsv, .csv, .jsonl or .txt file, also .gz; - reads standard input.")]
Lines = Annotated[str | None, typer.Option("--data", "-d", help="A .txt, .tsv, .csv or .jsonl file, also .gz; default -: standard input.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto: a CUDA device if there is one, else cpu.")]
Json = Annotated[bool, typer.Option("--json", help="JSON, an object a line.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read this many examples at most.")]
SkipBad = Annotated[int, typer.Option(min=0, help="Leave out at most that many bad lines.")]
Rows = Annotated[int, typer.Option(min=1, help="A batch holds so many times max_length tokens, of texts without padding.")]

Changes = Annotated[list[str] | None, typer.Option("--change", metavar="FIELD=JSON", help="Turn a switch of the model: attention=linear, "
                    'position=\'{"name": "hierarchical", "alpha": 0.4}\', residual_scores=true; may be given several times.')]  # fmt: skip


def changes_of(given: list[str] | None) -> dict[str, Any]:
    """What --change says, by field of ModelConfig: JSON, or a plain name. ConfigError for other forms and a field given twice."""
    changes: dict[str, Any] = {}
    for one in given or []:
        field, equals, written = (part.strip() for part in decoded(one).partition("="))
        if not field or not equals or not written or field in changes:
            raise ConfigError(f"--change {one}: {'is given twice' if field in changes else 'is no FIELD=JSON'}.",
                              fix="Write --change attention=linear, for example.")
        try:
            changes[field] = json.loads(written)
        except (ValueError, RecursionError):
            if written[0] in "{[\"":
                fix = "Quote it for the shell: --change 'position={\"name\": \"none\"}'."
                raise ConfigError(f"--change {one}: that is no JSON.", fix=fix) from None
            changes[field] = written                                  # a name
    return changes


def parts_of(text: str) -> list[str]:
    """What stands between commas: "a,b". Of a text without any, between full-width ones: "甲，乙", and then "甲、乙"."""
    plain = decoded(text)
    return [part.strip() for part in plain.split(next((comma for comma in ",，、" if comma in plain), ","))]


_VERBS = {"classify": "predict classify", "dialogue": "chat", "seq2seq": "predict seq2seq"}


def check_task(model: str, *tasks: str) -> str | None:
    """The task that saved this folder, None of other models. ConfigError that names its own verb if it is none of `tasks`."""
    from fishpaw.tasks.settings import read_settings

    folder = os.path.expanduser(model)
    task = read_settings(Path(folder)).get("task") if os.path.isdir(folder) else None
    if not isinstance(task, str) or task not in _VERBS:
        return None
    if task not in tasks:
        raise ConfigError(f"{model} was trained for {task}, not for this.", fix=f"Use `fishpaw {_VERBS[task]}`, or give another model.")
    return task


def check_out(out: Path) -> None:
    """Before minutes of reading: whether a folder can be made there. Nothing is made yet."""
    there = next((part for part in (out, *out.absolute().parents) if os.path.lexists(part)), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "can't be written" if there.is_dir() else "is a file, not a folder"
        raise ConfigError(f"--out {out}: {there} {what}.", fix="Choose a folder that you may write to.")


def device_of(name: str) -> torch.device:
    """The device of --device. ConfigError for one that is none, or not on this machine."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name} is no device.", fix="Give cpu, cuda, cuda:1, mps or auto.") from None
    there = {"cpu": not device.index, "cuda": torch.cuda.device_count() > (device.index or 0), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ConfigError(f"--device {name} is not on this machine.", fix="Give cpu or auto; `fishpaw doctor` tells what there is.")
    return device


def labelled(path: str, *, limit: int | None = None, skip_bad: int = 0, multi_label: bool = False) -> list[LabelledText]:
    """The examples of a file or of standard input, at least one."""
    from fishpaw.data.labelled import read_labelled

    _await_stdin(path)
    if not (examples := list(islice(read_labelled(path, skip_bad=skip_bad), limit))):
        raise DataError(f"{'standard input' if path == '-' else path}: no example.", fix="Write text<TAB>label on each line.")
    return [with_parts(one) for one in examples] if multi_label else examples


def with_parts(example: LabelledText) -> LabelledText:
    """On the command line commas part labels, in the data, too: "a,b" are two."""
    parts = (part.strip() for label in example.labels for part in label.split(","))
    return replace(example, labels=tuple(dict.fromkeys(filter(None, parts))))


def source_of(text: str | None, data: str | None) -> str:
    """Where texts come from, "" for the one on the command line, "-" for standard input; who has to type them is told so."""
    if text is not None and data is not None:
        raise ConfigError("A text and --data are given.", fix="Leave one out.")
    if text is not None and not text.strip():
        raise ConfigError("The text is blank.", fix="Give one, or leave it out to read standard input.")
    if text is None or text == "-":
        _await_stdin(data or "-")
        return data or "-"
    return ""


def texts_of(text: str | None, source: str, limit: int | None) -> Iterator[LabelledText]:
    """The text given, or those of a file: of txt and standard input each line whole, of tables and jsonl the texts."""
    from fishpaw.data.labelled import LabelledText, format_of, read_texts
    from fishpaw.data.records import read_lines

    if text is not None and not source:
        yield LabelledText(decoded(text))
    elif source == "-" or format_of(source) == "txt":
        for line in islice(read_lines(source), limit):
            yield LabelledText(line.text, file=line.file, line=line.line)
    else:
        for one in islice(read_texts(source), limit):
            if one.pair is not None:
                raise DataError(f"{one.file}, line {one.line}: a pair of texts, where one is wanted.", fix="Leave the second column out.")
            yield one


@contextmanager
def located(line: LabelledText) -> Iterator[None]:
    """Errors of a text that stood in a file say where."""
    try:
        yield
    except DataError as error:
        if not line.file:
            raise
        raise DataError(f"{line.file}, line {line.line}: {error.what}", fix=error.fix) from None


def _await_stdin(path: str) -> None:
    if path == "-" and sys.stdin is None:
        raise DataError("There is no standard input.", fix="Give a file: --data FILE.")
    if path == "-" and sys.stdin.isatty():
        tell(f"fishpaw: reading standard input, a text a line; end it with {'Ctrl-Z and Enter' if os.name == 'nt' else 'Ctrl-D'}")


def check_file(option: str, file: Path) -> None:
    """ConfigError for a folder, and for -, which would be a file of that name."""
    if file == Path("-"):
        raise ConfigError(f"--{option} - is no file: standard output is for answers.", fix="Name a file.")
    if file.is_dir():
        raise ConfigError(f"--{option} {file} is a folder.", fix="Name a file.")


def refuse_beside(option: str, given: dict[str, bool]) -> None:
    """ConfigError that names those options, of all that mean nothing to `option`, that are given."""
    if names := [name for name, there in given.items() if there]:
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        what, fix = ("means", "Leave it out.") if len(names) == 1 else ("mean", "Leave them out.")
        raise ConfigError(f"{listed} {what} nothing to {option}.", fix=fix)


def refuse_tab(line: LabelledText, pairs: bool | None) -> None:
    """DataError for a pair that a tab made, where the model was trained on single texts (pairs is False)."""
    if line.pair is None or pairs is not False or {".jsonl", ".csv"} & {*Path(line.file).suffixes}:
        return
    where, fix = "", "Give what is in front of the tab."
    if line.file:
        where = f"{line.file}, line {line.line}: "
        fix = "Put a row text<TAB>label on top, if labels stand behind the tab, or keep the first column: cut -f1."
    raise DataError(f"{where}The tab makes this a pair, and the model was trained on single texts.", fix=fix)
