"""The verb generate: texts continued or answered, by greedy search, beams, contrastive search or sampling; or the best of given answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    parts_of,
    source_of,
    texts_of,
)
from fishpaw.errors import ConfigError
from fishpaw.hub import SMALL
from fishpaw.terminal import decoded, tell, write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.choose import Calibration, Choice
    from fishpaw.tasks.generate import Answer, Generate
    from fishpaw.tasks.shots import Shot
    from fishpaw.text.encoding import Encoding

__all__ = ["generate"]

TOGETHER = 8                                                     # prompts of a file that are decoded together
_UNASKED = dict.fromkeys(("text", "score", "ended", "why", "tokens", "log_probabilities"))                # what a blank line gets

_SEARCH, _SAMPLING, _REPETITION, _FORM = "Search", "Sampling, with --sample", "Against repetition", "Form of the answer"


def _option(about: str, panel: str, *names: str) -> Any:
    """An option of one of the panels of --help."""
    return typer.Option(*names, help=about, rich_help_panel=panel)


def generate(
    model: Model = SMALL,
    text: Annotated[str | None, typer.Argument(help="The prompt; default: the lines of --data.")] = None,
    data: Lines = None,
    mask: Annotated[str | None, typer.Option(help="causal or unilm, for a model that was saved with another mask.")] = None,
    max_new: Annotated[int | None, typer.Option(help="Tokens at most, default 64. Where positions are limited, a prompt loses "
                                                "its beginning until so many fit; a line at the end says how many did.")] = None,
    min_new: Annotated[int, typer.Option(help="Tokens at least.")] = 0,
    n: Annotated[int, typer.Option(help="Answers a prompt.")] = 1,
    stream: Annotated[bool, typer.Option("--stream", help="Print each piece as it comes (one answer a prompt, no beams).")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help=f"Prompts decoded together: the same answers, sooner. Default {TOGETHER} of "
                                                               "a file, 1 of standard input, which is answered line by line.")] = None,
    beams: Annotated[int, _option("Width of the beam search; 1: greedy.", _SEARCH)] = 1,
    length_penalty: Annotated[float | None, _option("Of the beam search; above 0 favours long answers.", _SEARCH)] = None,
    contrastive_k: Annotated[int | None, _option("Contrastive search among so many candidates, 5 for example.", _SEARCH)] = None,
    contrastive_alpha: Annotated[float | None, _option("What being like earlier tokens costs, 0 to 1; default 0.6.", _SEARCH)] = None,
    sample: Annotated[bool, _option("Draw at random.", _SEARCH, "--sample")] = False,
    temperature: Annotated[float | None, _option("Below 1 sharper.", _SAMPLING)] = None,
    top_k: Annotated[int | None, _option("From the k likeliest tokens.", _SAMPLING)] = None,
    top_p: Annotated[float | None, _option("From the likeliest tokens of this probability in all.", _SAMPLING)] = None,
    consistent: Annotated[bool, _option("--top-k and --top-p always keep the end.", _SAMPLING, "--consistent")] = False,
    min_p: Annotated[float | None, _option("From tokens with this share of the best one's probability, such as 0.05.", _SAMPLING)] = None,
    typical: Annotated[float | None, _option("From tokens about as surprising as expected, of this probability in all.", _SAMPLING)] = None,
    eta: Annotated[float | None, _option("From tokens above a threshold that falls with entropy, 0.001 for example.", _SAMPLING)] = None,
    epsilon: Annotated[float | None, _option("From tokens of this probability or more, 0.0005 for example.", _SAMPLING)] = None,
    repetition_penalty: Annotated[float | None, _option("Divides logits of tokens that were there, 1.2 for example.", _REPETITION)] = None,
    frequency_penalty: Annotated[float | None, _option("Subtracted for each time that a token was generated.", _REPETITION)] = None,
    presence_penalty: Annotated[float | None, _option("Subtracted if a token was generated.", _REPETITION)] = None,
    no_repeat_ngram: Annotated[int | None, _option("No so many tokens in a row twice.", _REPETITION)] = None,
    dry: Annotated[float | None, _option("Multiplier of DRY, against repeating at length; 0.8 for example.", _REPETITION)] = None,
    loop_stop: Annotated[bool, _option("End an answer that goes round in circles.", _REPETITION, "--loop-stop")] = False,
    stop: Annotated[list[str] | None, _option("End before this text; may be given several times.", _FORM)] = None,
    regex: Annotated[str | None, _option("An expression that the whole answer matches.", _FORM)] = None,
    choices: Annotated[str | None, _option("Answers with commas (,，、) between them: the likeliest is printed.", _FORM)] = None,
    calibrate: Annotated[str | None, _option("What is compared of --choices: mean (default), log p a token; sum, log p, which favours "
                                             "short ones; contextual, against what follows --shots without a text.", _FORM)] = None,
    shots: Annotated[Path | None, _option("Examples to show before each text: input TAB output a line, or JSON lines.", _FORM)] = None,
    change: Changes = None,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Continue a text, or answer it: greedy, beam search, contrastive search or sampling. An answer may hold line ends; --json keeps each
    on one line."""
    from fishpaw.decoding.patterns import Pattern
    from fishpaw.decoding.settings import Settings
    from fishpaw.decoding.stops import StopStrings
    from fishpaw.decoding.termination import LoopDetector
    from fishpaw.tasks.generate import Generate
    from fishpaw.tasks.shots import few_shot
    from fishpaw.tasks.shots import shots as read_shots
    from fishpaw.weights.load import load

    if stream and (as_json or beams != 1 or n != 1):
        raise ConfigError("--stream prints one answer as it comes: no --beams, --n or --json.", fix="Leave them out.")
    settings = Settings(
        sample=sample, beams=beams, n=n, length_penalty=length_penalty, contrastive_k=contrastive_k, contrastive_alpha=contrastive_alpha,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical=typical, eta=eta, epsilon=epsilon, consistent=consistent,
        repetition_penalty=repetition_penalty, frequency_penalty=frequency_penalty, presence_penalty=presence_penalty,
        no_repeat_ngram=no_repeat_ngram, dry=dry,
    )  # fmt: skip
    searched = settings != Settings() or stream or stop or regex is not None or loop_stop or max_new is not None or min_new
    if choices is not None and searched:
        raise ConfigError("--choices are scored, not searched for.", fix="Leave out what is said of a search, stops, lengths and a form.")
    if choices is None and calibrate is not None:
        raise ConfigError("--calibrate is for --choices.", fix="Add them, or leave it out.")
    given = None if choices is None else _answers(choices)
    source = source_of(text, data)
    together = batch_size or (1 if source in ("", "-") else TOGETHER)
    examples = [] if shots is None else read_shots(shots)
    calibration = _calibration(calibrate or "mean", examples)
    changes = changes_of(change)
    if mask is None and not changes and model == SMALL:
        mask = "unilm"                                                # it reads both ways as it is, and was taught to write on, too
    elif mask is None and not changes:
        if check_task(model, "seq2seq", "dialogue") == "dialogue":
            tell(f"fishpaw: {model} was trained for dialogue and now goes on with a text; `fishpaw chat` answers")
    loaded, tokenizer = load(model, mask=mask, changes=changes)
    loaded.to(device_of(device))
    line_id = getattr(tokenizer, "line_id", None) if examples else None      # after examples of a line each, an answer is a line
    writer = Generate(loaded, tokenizer, ends=None if line_id is None else (line_id,))
    limits = writer.limits(64 if max_new is None else max_new, min_new)
    words = [*map(decoded, stop or []), *(["\n"] if examples and line_id is None else [])]
    stops: list[Any] = [*([StopStrings(tokenizer, words)] if words else []), *([LoopDetector()] if loop_stop else [])]
    constraints = [] if regex is None else [Pattern(decoded(regex), tokenizer, limits=limits)]
    if given is None and (proven := writer.termination(settings, limits, constraints)) is not None:
        tell(f"fishpaw: {proven}")

    def texts(lines: Iterable[LabelledText]) -> Iterator[str]:
        for line in lines:
            with located(line):
                shown = few_shot(examples, line.text) if examples else line.text
            yield shown

    def prompts(lines: Iterable[LabelledText]) -> Iterator[Encoding]:
        for line in lines:
            with located(line):
                prompt = writer.prompt(next(texts([line])), max_new=limits.max_new)
            yield prompt

    def streams(lines: Iterable[LabelledText]) -> Iterator[Iterator[str]]:
        for number, prompt in enumerate(prompts(lines)):
            yield writer.stream(prompt, settings, limits, constraints=constraints, stops=stops, seed=seed, number=number)

    def answers(lines: Iterable[LabelledText]) -> Iterator[list[Answer]]:
        return writer.answers(prompts(lines), settings, limits, constraints=constraints, stops=stops, batch_size=together, seed=seed)

    def tell_pieces(line: LabelledText, pieces: Iterator[str] | None) -> None:
        for piece in pieces or ():
            write(piece, end="")
        write("")

    def tell_answers(line: LabelledText, found: list[Answer] | None) -> None:
        some: Sequence[Answer | None] = [None] * n if found is None else found
        for one in some:
            if as_json:
                write_json({"prompt": line.text, **(_UNASKED if one is None else one.figures)})
            else:
                write("" if one is None else one.text)

    lines = texts_of(text, source, limit)
    if given is not None:
        answered(lines, lambda some: _chosen(writer, texts(some), given, calibration, together), partial(_tell_choice, given, as_json),
                 source=source)  # fmt: skip
    elif stream:
        answered(lines, streams, tell_pieces, source=source)
    else:
        answered(lines, answers, tell_answers, source=source)
    if writer.cut:
        reader = writer.model.encoder or writer.model
        tell(f"fishpaw: {writer.cut} of {writer.read} prompts lost their beginning: the model has {reader.longest} positions, "
             "--max-new included")  # fmt: skip


def _answers(choices: str) -> list[str]:
    """The answers of --choices, each once."""
    found = parts_of(choices)
    if not all(found) or len(set(found)) < len(found) or len(found) == 1:
        twice = next((one for one in found if found.count(one) > 1), None)
        wrong = "an answer is empty" if not all(found) else f"{twice} is given twice" if twice else "one answer alone is no choice"
        raise ConfigError(f"--choices {decoded(choices)}: {wrong}.", fix="Give each answer once, with commas between them.")
    return found


def _calibration(name: str, examples: list[Shot]) -> Calibration:
    from fishpaw.tasks.choose import Contextual, Mean, Sum
    from fishpaw.tasks.shots import few_shot

    match name:
        case "mean":
            return Mean()
        case "sum":
            return Sum()
        case "contextual" if examples:
            return Contextual(tuple(few_shot(examples, text) for text in ("N/A", "[MASK]", "")))     # arXiv:2102.09690, section 5
        case "contextual":
            raise ConfigError("--calibrate contextual asks after the examples alone, but there are none.", fix="Add --shots.")
    raise ConfigError(f"--calibrate {name} is no calibration.", fix="Choose mean, sum or contextual.")


def _chosen(writer: Generate, texts: Iterator[str], choices: list[str], calibration: Calibration, together: int) -> Iterator[Choice]:
    from fishpaw.tasks.choose import choose

    while some := list(islice(texts, together)):
        yield from choose(writer, some, choices, calibrate=calibration, batch_size=together)


def _tell_choice(choices: list[str], as_json: bool, line: LabelledText, found: Choice | None) -> None:
    if as_json:
        shares = None if found is None else dict(zip(choices, found.probabilities, strict=True))
        write_json({"prompt": line.text, "text": None if found is None else found.text, "probabilities": shares})
    else:
        write("" if found is None else found.text)
