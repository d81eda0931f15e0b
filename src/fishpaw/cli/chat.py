"""The verb chat: a conversation at the terminal, or, through a pipe, a turn a line and a reply a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.answers import answered
from fishpaw.cli.arguments import (
    Changes,
    Device,
    Json,
    Limit,
    Lines,
    Model,
    Seed,
    changes_of,
    check_task,
    device_of,
    located,
    source_of,
    texts_of,
)
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.terminal import in_options, tell, write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.decoding.settings import Settings
    from fishpaw.tasks.dialogue import Dialogue, Rank

__all__ = ["chat"]

_HELP = """/reset      begin a new conversation
/undo       take back your last turn and the reply to it
/save FILE  write the conversations of this session, one a line (JSON)
/help       this
Ctrl-C ends a reply, Ctrl-D the program; a turn that begins with / is written with //."""

Say = Callable[[list[str], int], Iterator[str]]
"""(history, the last turn to be answered; which reply of the session it is, from 1) -> the reply, piece by piece"""


def chat(
    model: Model,
    data: Lines = None,
    max_new: Annotated[int, typer.Option(help="Tokens a reply at most.")] = 64,
    min_new: Annotated[int, typer.Option(min=1, help="Tokens a reply at least.")] = 1,
    temperature: Annotated[float | None, typer.Option(help="Below 1 sharper.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens; default: 5, with --top-p or --min-p all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this probability in all.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw from tokens of this share of the likeliest one's probability.")] = None,
    no_repeat_ngram: Annotated[int | None, typer.Option(help="No n tokens twice in a reply.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: tokens already in the reply are less likely.")] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Search with so many beams instead of drawing; 1: greedy.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Of --beams; above 0 favours long replies.")] = None,
    contrastive_k: Annotated[int | None, typer.Option(help="Contrastive search among the k likeliest tokens instead of drawing.")] = None,
    contrastive_alpha: Annotated[float | None, typer.Option(help="Of it: what being like earlier tokens costs, 0 to 1.")] = None,
    rerank: Annotated[int | None, typer.Option(min=1, help="Draw so many replies, say the one that tells most of the history.")] = None,
    backward: Annotated[str | None, typer.Option(help="A model trained with --backward, to re-rank by; default: the model itself.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of the conversation that are read; default: as trained.")] = None,
    family: Annotated[str | None, typer.Option(help="As of train, where the checkpoint doesn't tell.")] = None,
    change: Changes = None,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Talk with a model: it remembers the conversation. /help says what can be typed. From a pipe or --data a turn a line, a reply each."""
    from fishpaw.decoding.settings import Settings
    from fishpaw.tasks.dialogue import Dialogue

    draws = beams is None and contrastive_k is None
    drawing = {"rerank": rerank, "temperature": temperature, "top-k": top_k, "top-p": top_p, "min-p": min_p}
    given = [name for name, value in drawing.items() if value is not None]
    if given and not draws:
        raise ConfigError(f"--{given[0]} is for replies that are drawn.", fix="Leave --beams and --contrastive-k out.")
    settings = Settings(
        sample=draws, beams=beams or 1, n=rerank or 1, contrastive_k=contrastive_k, length_penalty=length_penalty,
        contrastive_alpha=contrastive_alpha, temperature=temperature, top_p=top_p, min_p=min_p,
        top_k=5 if draws and (top_k, top_p, min_p) == (None, None, None) else top_k,
        no_repeat_ngram=no_repeat_ngram, repetition_penalty=repetition_penalty,
    )  # fmt: skip
    settings.processors()                                            # wrong values are told before a model is loaded
    if backward is not None and rerank is None:
        raise ConfigError("--backward is for re-ranking.", fix="Add --rerank 8, for example.")
    talks = data is None and _terminal()
    source = "" if talks else source_of(None, data)
    place, changes = device_of(device), changes_of(change)
    for one in (model, *([] if backward is None else [backward])):
        if not changes:
            check_task(one, "dialogue")
    task = Dialogue.load(model, max_length=max_length, family=family, changes=changes)
    task.model.to(place)
    say = _speaker(task, settings, max_new, min_new, rerank, backward, seed)
    session = _Session(say, _told_of_cuts(task, max_new), as_json)
    if not talks:
        def taken(lines: Iterator[LabelledText]) -> Iterator[None]:
            for line in lines:
                with located(line):
                    session.take(line.text)
                yield

        answered(texts_of(None, source, limit), taken, session.pass_over, source=source)
        return
    tell(f"fishpaw: {model}, {place}; /help says what can be typed, Ctrl-D ends")
    for typed in _typed(limit):
        try:
            session.take(typed)
        except FishpawError as error:
            tell(f"fishpaw: {in_options(str(error))}")
        except KeyboardInterrupt:
            write("")
            session.stop()


class _Session:
    """What has been said, and where it was written."""

    def __init__(self, say: Say, notice: Callable[[list[str]], None], as_json: bool) -> None:
        self.say, self.notice, self.as_json = say, notice, as_json
        self.past: list[list[str]] = []
        self.turns: list[str] = []
        self.asked = 0
        self.saved: set[Path] = set()
        self._open = ""

    def take(self, line: str) -> None:
        """A line: a command, or a turn to answer. Errors leave the conversation as it was. To be silent is a reply: "" among the turns."""
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            self._command(*text.split(maxsplit=1))
        elif text:
            self._answer(text.removeprefix("/") if text.startswith("//") else text)

    def pass_over(self, line: LabelledText, taken: None) -> None:
        """A blank turn of a pipe is nothing said, and gets a blank reply."""
        if not line.text.strip():
            if self.as_json:
                write_json({"said": "", "reply": None, "turn": None})
            else:
                write("")

    def stop(self) -> None:
        """A reply was interrupted: what there is of it stands; of nothing, its question doesn't either."""
        if len(self.turns) % 2:                                      # a turn without a reply yet
            if reply := self._open.strip():
                self.turns.append(reply)
            else:
                self.turns.pop()

    def _answer(self, text: str) -> None:
        self.turns.append(text)
        self.asked += 1
        self._open = ""
        try:
            self.notice(self.turns)
            for piece in self.say(list(self.turns), self.asked):
                self._open += piece
                if not self.as_json:
                    write(piece, end="")
        except FishpawError:
            self.turns.pop()
            raise
        if self.as_json:
            write_json({"said": text, "reply": self._open, "turn": len(self.turns) + 1})
        else:
            write("")
        self.turns.append(self._open.strip())
        if not self.turns[-1]:
            tell("fishpaw: the model says nothing to this; your turn stands, /undo takes it back")

    def _command(self, name: str, rest: str = "") -> None:
        match name, rest.strip():
            case "/reset", "":
                self.past, self.turns = [*self.past, self.turns], []
            case "/undo", "":
                del self.turns[-2:]
            case "/help", "":
                tell(_HELP)
            case "/save", file if file:
                self._save(Path(file).expanduser())
            case "/save", _:
                raise DataError("/save needs the name of a file.", fix="Write /save talk.jsonl.")
            case _:
                raise DataError(f"{name} {rest}".strip()[:60] + " is no command.", fix="/help says what there is; // begins a turn with /.")

    def _save(self, file: Path) -> None:
        import json

        from fishpaw.files import write_atomic

        if file not in self.saved and (file.exists() or file.is_symlink()):
            raise DataError(f"{file}: is there already.", fix="Choose another name.")
        found = [_spoken(one) for one in (*self.past, self.turns) if one]
        if not found:
            raise DataError("Nothing has been said yet.", fix="Talk first.")
        write_atomic(file, "".join(json.dumps({"turns": one}, ensure_ascii=False) + "\n" for one in found))
        self.saved.add(file)
        tell(f"fishpaw: {len(found)} conversation{'s' * (len(found) > 1)} in {file}")


def _spoken(turns: list[str]) -> list[str]:
    """Turns that no file of conversations refuses: what the user said on both sides of a silence is one turn, on two lines."""
    found: list[str] = []
    for place, turn in enumerate(turns):
        if turn and place % 2 != len(found) % 2:
            found[-1] += f"\n{turn}"
        elif turn:
            found.append(turn)
    return found


def _terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _speaker(
    task: Dialogue, settings: Settings, max_new: int, min_new: int, rerank: int | None, backward: str | None, seed: int
) -> Say:
    """How this session's replies are found: told as they come, or, of beams and of several, whole. Each reply draws its own numbers."""
    from fishpaw.tasks.dialogue import Dialogue
    from fishpaw.tasks.rerank import Backward, Mutual

    task.limits(max_new, min_new)                                    # wrong bounds are told before the first turn
    if settings.beams == 1 and rerank is None:
        return lambda turns, number: task.stream(turns, settings, max_new=max_new, min_new=min_new, seed=seed + number)
    rank: Rank | None = None
    if rerank is not None:
        if task.template is not None:
            raise ConfigError("Replies through a chat template are not re-ranked.", fix="Leave --rerank out.")
        other = None if backward is None else Dialogue.load(backward)
        if other is not None:
            other.model.to(task.model.table.device)
        rank = Mutual() if other is None else Backward(other)

    def whole(turns: list[str], number: int) -> Iterator[str]:
        yield task.reply(turns, settings, max_new=max_new, min_new=min_new, rank=rank, seed=seed + number)

    return whole


def _told_of_cuts(task: Dialogue, max_new: int) -> Callable[[list[str]], None]:
    def notice(turns: list[str]) -> None:
        if task.template is None and task.encode(turns[-1:], max_new=max_new).cut:
            tell(f"fishpaw: this turn has lost its beginning: a conversation has {task.max_length} tokens, --max-new included")

    return notice


def _typed(limit: int | None) -> Iterator[str]:
    """Lines of a terminal until Ctrl-D; Ctrl-C only begins the line anew."""
    from fishpaw.text.normalize import mend

    try:
        import readline  # noqa: F401  # input() then edits lines, wide characters too
    except ImportError:                                              # Windows edits by itself
        pass
    count = 0
    while limit is None or count < limit:
        try:
            line = input("> ")
        except KeyboardInterrupt:
            write("")
            continue
        except EOFError:
            write("")
            return
        count += 1
        yield mend(line)
