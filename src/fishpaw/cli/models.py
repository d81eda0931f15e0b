"""The verbs that write a model anew: convert, for this library or TensorFlow, and export onnx."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.arguments import Changes, Json, changes_of, parts_of
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.terminal import tell, write_figures

if TYPE_CHECKING:
    from fishpaw.text.encoding import Tokenizer

__all__ = ["Layout", "convert", "export_onnx"]


class Layout(StrEnum):
    """What convert writes."""

    SAFETENSORS = "safetensors"
    TENSORFLOW = "tensorflow"


Source = Annotated[str, typer.Argument(help="A folder, a file, a TensorFlow checkpoint or a hub id.")]


def convert(
    model: Source,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Layout, typer.Option(help="safetensors, which transformers opens, too; or the checkpoint of Google's scripts and "
                                            "bert4keras, for families that were published so.")] = Layout.SAFETENSORS,
    family: Annotated[str | None, typer.Option(help="bert, t5, gpt2 or another, where the checkpoint doesn't tell.")] = None,
    change: Changes = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Read a folder whose manifest no longer fits, as you changed it.")] = False,
    as_json: Json = False,
) -> None:
    """Write any checkpoint that can be read as a folder with safetensors, or a TensorFlow checkpoint, and a manifest."""
    from fishpaw.weights.load import inspect
    from fishpaw.weights.save import save
    from fishpaw.weights.to_tensorflow import save_tensorflow

    loaded, report = inspect(model, changes=changes_of(change), family=family, verify=not no_verify)
    for note in report.notes:
        tell(f"fishpaw: {note}")
    if report.unused:
        more = f" and {len(report.unused) - 20} more" if len(report.unused) > 20 else ""
        tell(f"fishpaw: {len(report.unused)} tensors have no place in this model and are left out: {', '.join(report.unused[:20])}{more}")
    (save_tensorflow if to is Layout.TENSORFLOW else save)(loaded, out, _tokenizer(report.folder))
    write_figures({"family": report.family, "reason": report.reason, "new": len(report.new), "unused": len(report.unused),
                    "nonfinite": len(report.nonfinite), "model": str(out)}, as_json)


def export_onnx(
    model: Source,
    out: Annotated[Path, typer.Argument(help="The folder to write: graph, config.json, tokenizer, manifest.")],
    int8: Annotated[bool, typer.Option("--int8", help="Products in int8: smaller and faster, nearly the same answers.")] = False,
    heads: Annotated[str | None, typer.Option(help='By commas, "" for hidden states only; default: all that the checkpoint holds.')] = None,
    as_json: Json = False,
) -> None:
    """Write an ONNX graph for serving, and say how near its outputs come to the model's; one that strays is not kept."""
    from fishpaw.switch import nearest, spec_name
    from fishpaw.weights.load import inspect
    from fishpaw.weights.onnx import export, export_int8, refuse, require

    require()
    loaded, report = inspect(model)
    for note in report.notes:
        tell(f"fishpaw: {note}")
    if heads is not None:
        held = {spec_name(head): head for head in loaded.config.heads}
        asked = [name for name in parts_of(heads) if name]
        for name in asked:
            if name not in held:
                raise ConfigError(f"The model has no head {name!r}.", fix=nearest(name, sorted(held)))
        loaded.set_heads([held[name] for name in asked])
    refuse(loaded, out)
    tokenizer = _tokenizer(report.folder)
    tell("fishpaw: tracing the model; half a minute for a BERT-base")
    made = (export_int8 if int8 else export)(loaded, out, tokenizer)
    figures = {"file": str(made.file), "bytes": made.size, "inputs": made.inputs, "outputs": made.outputs, "difference": made.difference,
               "cosine": made.cosine, "least_cosine": made.least_cosine}  # fmt: skip
    shown = {"inputs": ", ".join(made.inputs), "outputs": ", ".join(made.outputs), "difference": f"{made.difference:.1e}"}
    write_figures(figures if as_json else {**figures, **shown}, as_json)


def _tokenizer(folder: Path) -> Tokenizer | None:
    """That of a folder; without one the model alone is written, and a line says so."""
    from fishpaw.text.load import load_tokenizer

    try:
        return load_tokenizer(folder)
    except CheckpointError as error:
        tell(f"fishpaw: without a tokenizer: {error}")
        return None
