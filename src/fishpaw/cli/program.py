"""The program `fishpaw`: its verbs, and how it ends. Each verb hands over to the library; nothing heavy is imported before one needs it."""

from __future__ import annotations

import functools
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from fishpaw import __version__
from fishpaw.cli.arguments import Json, Seed
from fishpaw.cli.chat import chat
from fishpaw.cli.classify import evaluate_classify, predict_classify, train_classify
from fishpaw.cli.dialogue import evaluate_dialogue, train_dialogue
from fishpaw.cli.explain import explain
from fishpaw.cli.fill import fill
from fishpaw.cli.generate import generate
from fishpaw.cli.lab import lab
from fishpaw.cli.models import convert, export_onnx
from fishpaw.cli.parse import parse
from fishpaw.cli.pretrain import pretrain
from fishpaw.cli.score import score
from fishpaw.cli.segment import segment
from fishpaw.cli.seq2seq import evaluate_seq2seq, predict_seq2seq, train_seq2seq
from fishpaw.cli.shuffle import shuffle
from fishpaw.errors import FishpawError
from fishpaw.terminal import beside_a_bar, in_options, leave, show_warning, tell, write, write_json

__all__ = ["app", "main"]

_Refused: type[Any] = typer.BadParameter.__mro__[2]                   # click's ClickException, of which typer brings its own
_SAID = (                                                             # what the parser says, and how it is said here
    (r"\s+", " "), (r"^Invalid value for '([^']*)'(?: / '[^']*')*: ", r"\1 "), (r"Value error, |, unable to parse string as an? \w+", ""),
    (r"Input should be", "should be"), (r" \(Possible options: (.*)\)$", r"; close to it: \1"),
)  # fmt: skip


def main() -> None:
    """Run the program. Exit code 0; 2 for a user's mistake; 3: the hub can't be reached; 130 for Ctrl-C. Output is UTF-8 in any locale."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "replace")
    warnings.showwarning = show_warning
    if logging.lastResort is not None:                               # the library logs, and leaves it to programs what to do with it
        logging.lastResort.setFormatter(logging.Formatter("fishpaw: %(message)s"))
    try:
        code = _verbs()(standalone_mode=False)                       # else typer draws a box around what it refuses
    except _Refused as error:
        if said := _refusal(error):
            tell(said)
        leave(error.exit_code)
    leave(code or 0)


@functools.cache
def _verbs() -> Any:
    """All verbs and their options: made once a process, as that takes longer than most of them."""
    return get_command(app)


class Program(TyperGroup):
    """Ends as a program should, whatever a verb raises: a user's mistake is one sentence on stderr and its exit code, no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FishpawError as error:
            tell(f"fishpaw: {in_options(str(error))}")
            leave(error.exit_code)
        except KeyboardInterrupt:
            tell("fishpaw: stopped.")
            leave(130)


def program(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """One Transformer that becomes BERT, RoFormer, GPT, UniLM … by switches; training, decoding and tasks on it."""
    if version:
        write(__version__)
        raise typer.Exit()


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="For the run and the model; a run there begins anew.")] = Path("runs/demo"),
    data: Annotated[Path | None, typer.Option("--data", "-d", help="A data folder; default: FISHPAW_DATA, else bundled reviews.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training; default: what fits in a minute.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show the model that ships at work: it fills blanks, finds near sentences, goes on with texts, and learns to tell reviews apart."""
    from fishpaw import demo as stage

    say = beside_a_bar(tell if as_json else write)
    figures = stage.demo(say, out=out, data=data or stage.data_folder(), seed=seed, steps=steps)
    if as_json:
        write_json(figures)


def doctor(as_json: Json = False) -> None:
    """Say what this machine offers, what speed to expect of it and what is missing. Measures for about two seconds."""
    from fishpaw.doctor import examine

    for one in examine():
        if as_json:
            write_json({"subject": one.subject, "found": one.found, "advice": one.advice, "figures": dict(one.figures)})
        else:
            write(f"{one.subject:16} {one.found}" + (f"  ->  {one.advice}" if one.advice else ""))


def _refusal(error: Any) -> str:
    """What the parser says of the words typed, in one sentence; of no words the help, "" if that has been printed."""
    said: str = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        return said
    for written, instead in _SAID:
        said = re.sub(written, instead, said)
    more = f" `{error.ctx.command_path} --help` says what there is." if getattr(error, "ctx", None) else ""
    return f"fishpaw: {said}{'' if said.endswith(('.', '?')) else '.'}{more}"


def _group(verb: str, about: str, **tasks: Callable[..., None]) -> None:
    """A verb with a word after it: `train classify`."""
    group = typer.Typer(no_args_is_help=True, help=about)
    for name, function in tasks.items():
        group.command(name)(function)
    app.add_typer(group, name=verb)


app = typer.Typer(name="fishpaw", cls=Program, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True,
                  help=program.__doc__)
app.callback(invoke_without_command=True)(program)
for _verb in (demo, doctor, fill, score, generate, chat, segment, parse, explain, lab, pretrain, convert, shuffle):
    app.command()(_verb)
_group("train", "Train a task.", classify=train_classify, dialogue=train_dialogue, seq2seq=train_seq2seq)
_group("evaluate", "Measure a trained task on labelled examples.", classify=evaluate_classify, dialogue=evaluate_dialogue,
       seq2seq=evaluate_seq2seq)
_group("predict", "Apply a trained task to texts.", classify=predict_classify, seq2seq=predict_seq2seq)
_group("export", "Write a model for another program.", onnx=export_onnx)
