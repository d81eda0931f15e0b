"""The verb generate: texts continued or answered, by greedy search, beams or sampling."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fishpaw.cli.arguments import Changes, Device, Json, Limit, Lines, Model, Seed, changes_of, device_of, located, source_of, texts_of
from fishpaw.errors import ConfigError
from fishpaw.terminal import tell, write, write_json

__all__ = ["generate"]


def generate(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="The prompt; default: the lines of --data.")] = None,
    data: Lines = None,
    mask: Annotated[str | None, typer.Option(help="causal or unilm, for a model that was saved with another mask.")] = None,
    max_new: Annotated[int, typer.Option(help="Tokens at most. Where positions are limited, a prompt loses "
                                                "its beginning until so many fit; a line at the end says how many did.")] = 64,
    min_new: Annotated[int, typer.Option(help="Tokens at least.")] = 0,
    beams: Annotated[int, typer.Option(help="Width of the beam search; 1: greedy.")] = 1,
    length_penalty: Annotated[float | None, typer.Option(help="Of the beam search; above 0 favours long answers.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw at random.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; below 1 sharper.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this probability in all.")] = None,
    n: Annotated[int, typer.Option(help="Answers a prompt.")] = 1,
    stream: Annotated[bool, typer.Option("--stream", help="Print each piece as it comes (one answer a prompt, no beams).")] = False,
    change: Changes = None,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Continue a text, or answer it: greedy, beam search or sampling. An answer may hold line ends; --json keeps each on one line."""
    from fishpaw.decoding.processors import Temperature, TopK, TopP
    from fishpaw.decoding.sample import sample as draw
    from fishpaw.decoding.sample import stream_sample
    from fishpaw.decoding.search import beam, stream_greedy
    from fishpaw.tasks.generate import Generate, generator
    from fishpaw.weights.load import load

    if sample and beams != 1:
        raise ConfigError("--sample and --beams exclude each other.", fix="Leave one out.")
    if stream and (beams != 1 or n != 1 or as_json):
        raise ConfigError("--stream prints one answer as it comes: no --beams, --n or --json.", fix="Leave them out.")
    if not sample and n > max(1, beams):
        raise ConfigError(f"--n {n} answers need --sample or at least as many --beams.", fix="Add one of them.")
    if length_penalty is not None and beams == 1:
        raise ConfigError("--length-penalty is for the beam search.", fix="Add --beams 4, for example.")
    filters: list[Any] = [] if temperature is None else [Temperature(temperature)]
    filters += [] if top_k is None else [TopK(top_k)]
    filters += [] if top_p is None else [TopP(top_p)]
    if filters and not sample:
        raise ConfigError("--temperature, --top-k and --top-p are for sampling.", fix="Add --sample.")
    source = source_of(text, data)
    writer = Generate(*load(model, mask=mask, changes=changes_of(change)))
    writer.model.to(device_of(device))
    limits = writer.limits(max_new, min_new)
    chance = generator(seed)
    count = 0
    for line in texts_of(text, source, limit):
        count += 1
        with located(line):
            prompt = writer.encode([line.text], max_new=max_new)
        if stream:
            tokens = stream_sample(writer.stepper, prompt, limits=limits, processors=filters, generator=chance) if sample else \
                stream_greedy(writer.stepper, prompt, limits=limits)  # fmt: skip
            for piece in writer.pieces(tokens):
                write(piece, end="")
            write("")
            continue
        if sample:
            (answers,) = draw(writer.stepper, prompt, limits=limits, n=n, processors=filters, generator=chance)
        else:
            (answers,) = beam(writer.stepper, prompt, beams=beams, n=n, limits=limits, length_penalty=length_penalty or 0.0)
        for answer in answers:
            said = writer.decode(answer)
            if as_json:
                write_json({"prompt": line.text, "text": said, "score": answer.score, "ended": answer.ended, "tokens": len(answer.tokens)})
            else:
                write(said)
    if writer.cut:
        reader = writer.model.encoder or writer.model
        tell(f"fishpaw: {writer.cut} of {count} prompts lost their beginning: the model has {reader.longest} positions, --max-new included")
