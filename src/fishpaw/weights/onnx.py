"""A model as an ONNX graph for serving, in fp32 or with int8 products, compared with the model before it is kept (https://onnx.ai).

The graph takes `input_ids`, `attention_mask` (1 where there is a token) and, if the model reads segments, `token_type_ids`: int64 [b t],
any number of rows, any length that the model's positions reach. It gives, by the names that transformers and optimum use,
`last_hidden_state` [b t d] and what the heads make: `logits` (of the classifier [b c] or, without one, of the tokens [b t v]),
`pooler_output` [b d], `seq_relationship_logits` [b 2], and beside a classifier the tokens' `prediction_logits` [b t v]. What it gives at
padding means nothing. A causal model's graph scores whole texts; it keeps no cache.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fishpaw.contracts import Batch, Output
from fishpaw.errors import CheckpointError, ConfigError, FishpawError
from fishpaw.files import MANIFEST, folder_atomic
from fishpaw.model.transformer import Transformer
from fishpaw.weights.save import Saveable
from fishpaw.weights.save import export as layout

if TYPE_CHECKING:
    import onnx

__all__ = ["INT8", "PLAIN", "Exported", "export", "export_int8", "refuse", "require"]

PLAIN, INT8 = "model.onnx", "model.int8.onnx"

_OPSET = 20                       # the first with Gelu; ONNX Runtime reads it since 1.17
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2 * 10**9              # bytes in one file: protocol buffers end at 2 GiB; what is larger has its weights in a file beside it
_TOLERANCE = 1e-4                 # fp32, of values up to 1, and in proportion above
_LEAST_MEAN, _LEAST = 0.99, 0.9   # int8: cosines of hidden states, on average and at worst
_HIDDEN = -3e38                   # a score that softmax makes 0; finite, so that a token that sees nothing is no NaN
_PROBES = ((1, 1), (3, 13), (2, 31))

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written and how near it is. size: bytes. difference: the largest at tokens between the graph's outputs and the model's,
    over the largest output where that is above 1. cosine, least_cosine: of the int8 graph's hidden states with the model's, on average
    and at worst; None for fp32."""

    file: Path
    size: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float
    cosine: float | None = None
    least_cosine: float | None = None


def export(model: Transformer, folder: str | Path, tokenizer: Saveable | None = None) -> Exported:
    """Write model.onnx (fp32, whatever type the parameters are in), config.json, the tokenizer's files and a manifest, whole or not at all.

    An older export there is replaced; anything else there is refused. The model is left as it is. Errors: ConfigError where a package of
    the extra `onnx` is missing, for a decoder that reads an encoder, and for parts that ONNX has no words for; CheckpointError for a model
    that answers NaN; FishpawError where the graph's outputs differ from the model's by more than 1e-4, and where the folder can't be
    written.
    """
    refuse(model, folder)
    with folder_atomic(folder) as new:
        made = _make(model, new, tokenizer)
        return Exported(Path(folder) / PLAIN, _size(new, PLAIN), made.inputs, made.outputs, made.difference)


def export_int8(model: Transformer, folder: str | Path, tokenizer: Saveable | None = None) -> Exported:
    """As `export`, but model.int8.onnx: each matrix in int8 with a scale a column, activations quantised as they come; norms, attention and
    tables in fp32, but for a table of tokens that a head is tied to. For processors with int8 dot products (VNNI, ARM dotprod); without
    them sums may saturate.

    FishpawError, too, where hidden states have a cosine with the model's below 0.99 on average or 0.9 at worst."""
    refuse(model, folder)
    with folder_atomic(folder) as new:
        made = _make(model, new, tokenizer)
        with _quiet():
            _quantize(new / PLAIN, new / INT8)
        for path in new.glob(f"{PLAIN}*"):
            path.unlink()
        mean, least = _liken(new / INT8, made)
        strayed = _compare(new / INT8, made, allowed=float("inf"))   # the cosines are the judges here
        return Exported(Path(folder) / INT8, _size(new, INT8), made.inputs, made.outputs, strayed, mean, least)


def refuse(model: Transformer, folder: str | Path) -> None:
    """What can be said before a minute of tracing: a missing package, a decoder that reads an encoder, a folder of something else."""
    require()
    if model.config.encoder is not None:
        raise ConfigError("This decoder reads an encoder: no single graph does that.", fix="Export an encoder or a causal model.")
    if model.config.stream == "positions":
        raise ConfigError('A model of stream "positions" (T-TA) can\'t be written as a graph.', fix="Serve it with fishpaw.")
    path = Path(folder)
    if (path / MANIFEST).is_file() and not any(path.glob("*.onnx")):
        raise FishpawError(f"{path}: holds a saved model, which the export would replace.", fix="Choose another folder.")
    if path.is_dir() and not (path / MANIFEST).is_file() and any(path.glob("*.onnx")):
        raise FishpawError(f"{path}: holds an .onnx file that fishpaw did not write.", fix="Choose a new folder, or empty this one.")


def require() -> None:
    """ConfigError where a package of the extra `onnx` is missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX export needs {', '.join(missing)}: not installed.", fix='Run: pip install "fishpaw[onnx]"')


@dataclass(frozen=True)
class _Made:
    """Inputs to try a graph with, what the model answers, and how near the fp32 graph comes to that."""

    probes: list[Arrays]
    wanted: list[Arrays]
    difference: float = 0.0

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.probes[0])

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.wanted[0])


class _Served(nn.Module):
    """What the graph does: a padded batch in, a tuple of outputs out."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        batch = Batch.padded(input_ids, keep=attention_mask.bool(), segments=token_type_ids)
        return tuple(_named(self.model(batch)).values())


def _named(output: Output) -> Arrays:
    token_logits, classes = output.logits, output.classes
    named = {
        "last_hidden_state": output.hidden,
        "logits": token_logits if classes is None else classes,
        "prediction_logits": None if classes is None else token_logits,
        "pooler_output": output.pooled,
        "seq_relationship_logits": output.nsp,
        "replaced_logits": output.replaced,
    }
    return {name: value for name, value in named.items() if value is not None}


def _make(model: Transformer, folder: Path, tokenizer: Saveable | None) -> _Made:
    """Write the fp32 graph and what stands beside it, and compare."""
    values, _ = layout(model.config, model.state_dict())
    if model.origin is not None:
        values["origin"] = model.origin
    (folder / "config.json").write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
    if tokenizer is not None:
        tokenizer.save(folder)
    twin = _twin(model)
    probes = [_probe(twin, rows, length) for rows, length in _PROBES]
    made = _Made(probes, [_answers(twin, probe) for probe in probes])
    if not all(bool(one.isfinite().all()) for answers in made.wanted for one in answers.values()):
        raise CheckpointError("The model answers NaN or infinities to ordinary ids.", fix="Look for them in its weights first.")
    with _quiet():
        _write(_graph(twin, probes[1], made.outputs), folder / PLAIN)
    return replace(made, difference=_compare(folder / PLAIN, made))


def _twin(model: Transformer) -> Transformer:
    """The same model in fp32 on the CPU, in evaluation mode and as it would be loaded; it shares memory where it can."""
    with torch.device("meta"):
        twin = Transformer(model.config)
    twin.load_state_dict({name: value.detach().to("cpu", torch.float32) for name, value in model.state_dict().items()}, assign=True)
    for name, value in model.named_buffers():                        # those that no state holds: frozen tables
        place, _, leaf = name.rpartition(".")
        if getattr(twin.get_submodule(place), leaf).is_meta:
            setattr(twin.get_submodule(place), leaf, value.to("cpu"))
    return twin.eval().requires_grad_(False)


def _probe(model: Transformer, rows: int, length: int) -> Arrays:
    """Random ids; the first row is whole, the second padded on the right, a third on the left; two segments."""
    length = min(length, model.longest or length)
    chance = torch.Generator().manual_seed(length)
    ids = torch.randint(model.config.vocab_size, (rows, length), generator=chance)
    mask, segments = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1:2, (length + 1) // 2 :] = 0
    mask[2:3, : length // 3] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.segments or model.mask.clock == "unilm":
        segments[:, (length + 1) // 3 :] = 0 if model.config.segments == 1 else 1
        inputs["token_type_ids"] = segments
    return inputs


def _answers(model: Transformer, probe: Mapping[str, Tensor]) -> Arrays:
    batch = Batch.padded(probe["input_ids"], keep=probe["attention_mask"].bool(), segments=probe.get("token_type_ids"))
    with torch.no_grad():
        return _named(model(batch))


def _graph(model: Transformer, example: Mapping[str, Tensor], outputs: tuple[str, ...]) -> onnx.ModelProto:
    """Trace the model; sizes stay open, and nothing of this machine's paths is kept."""
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    table: dict[Any, Any] = {
        torch.ops.aten.scaled_dot_product_attention.default: _attention,
        torch.ops.aten.hypot.default: _hypot,
    }
    try:
        program = torch.onnx.export(
            _Served(model).eval(), tuple(example.values()), dynamo=True, dynamic_shapes=dict.fromkeys(example, sizes), verbose=False,
            input_names=list(example), output_names=list(outputs), opset_version=_OPSET, custom_translation_table=table,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = f"This model can't be written as an ONNX graph: {_first_line(cause)}"
        raise ConfigError(said, fix="Choose other parts (activation, position, attention), or serve it with fishpaw.") from error
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    for node in graph.graph.node:                                    # source lines and stacks of the machine that traced
        del node.metadata_props[:]
    for part in (graph.graph, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del part.metadata_props[:]
    del graph.graph.value_info[:]                                    # quantize_dynamic fails on the shapes that it would read there
    return graph


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """softmax(scale q k^T + mask) v in plain ONNX. torch's own translation looks for NaN after each softmax, 3 % of an int8 forward."""
    op = _words()
    if is_causal or dropout_p or scale is None:
        raise NotImplementedError("attention without a mask or a scale, or with dropout")
    if enable_gqa:
        heads, keys, width = int(query.shape[1]), int(key.shape[1]), int(key.shape[3])
        key, value = (op.Reshape(op.Expand(op.Unsqueeze(each, [2]), [1, 1, heads // keys, 1, 1]), [0, heads, -1, width])
                      for each in (key, value))  # fmt: skip
    scores = op.Mul(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), scale)
    if attn_mask is not None:
        scores = op.Add(scores, op.Where(attn_mask, 0.0, _HIDDEN) if attn_mask.dtype.name == "BOOL" else attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _hypot(one: Any, two: Any) -> Any:
    op = _words()
    return op.Sqrt(op.Add(op.Mul(one, one), op.Mul(two, two)))


def _words() -> Any:
    """ONNX's operators; typed for finished graphs, not for what a trace hands over."""
    from onnxscript import opset20

    return opset20


def _write(graph: onnx.ModelProto, path: Path) -> None:
    import onnx

    large = sum(len(one.raw_data) for one in graph.graph.initializer) > _LARGEST
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save_model(graph, path, save_as_external_data=large, location=f"{path.name}.data")


def _quantize(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load_model(source)
    if _part(graph):
        _write(graph, source)
    del graph
    quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
                     use_external_data_format=_size(source.parent, source.name) > _LARGEST)  # fmt: skip
    graph = onnx.load_model(target)
    if _share(graph):
        _write(graph, target)


def _part(graph: onnx.ModelProto) -> bool:
    """Give each product that shares its matrix (a tied table) one of its own: the quantiser turns it over in place. True if any did."""
    held = {one.name: one for one in graph.graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    parted = 0
    for node in graph.graph.node:
        if node.op_type == "Gemm" and node.input[1] in held and readers[node.input[1]] > 1:
            copy = graph.graph.initializer.add()
            copy.CopyFrom(held[node.input[1]])
            parted += 1
            copy.name = node.input[1] = f"{node.input[1]}.{parted}"
    return parted > 0


def _share(graph: onnx.ModelProto) -> bool:
    """Read the vectors of tokens, too, from the int8 copy of a tied table that `_part` made and the quantiser turned over ([e v], a scale a
    token), and drop the table in fp32, which is more than all else in a small model. True if there was one."""
    from onnx import TensorProto, helper

    parts = graph.graph
    held = {one.name: one for one in parts.initializer}
    nodes, dropped = [], set()
    for node in parts.node:
        table, made = node.input[0] if node.input else "", node.output[0] if node.output else ""
        if node.op_type != "Gather" or f"{table}.1_quantized" not in held:
            nodes.append(node)
            continue
        ids = node.input[1]
        columns, rows, exact, scale, scales = (f"{made}_{part}" for part in ("columns", "rows", "exact", "scale", "scales"))
        dropped.add(table)
        nodes += [
            helper.make_node("Gather", [f"{table}.1_quantized", ids], [columns], axis=1),                        # [e n]
            helper.make_node("Transpose", [columns], [rows], perm=[1, 0]),                                                # [n e]
            helper.make_node("Cast", [rows], [exact], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table}.1_scale", ids], [scale]),                                      # [n]
            helper.make_node("Unsqueeze", [scale, f"{made}_last"], [scales]),
            helper.make_node("Mul", [exact, scales], [made]),
        ]
        parts.initializer.append(helper.make_tensor(f"{made}_last", TensorProto.INT64, [1], [-1]))
    dropped -= {name for node in nodes for name in node.input}
    del parts.node[:]
    parts.node.extend(nodes)
    for name in dropped:
        parts.initializer.remove(held[name])
    return bool(dropped)


def _compare(path: Path, made: _Made, *, allowed: float = _TOLERANCE) -> float:
    """The largest difference at tokens, in proportion to outputs above 1; FishpawError if it is more than is allowed, or NaN."""
    worst = 0.0
    for keep, model_says, graph_says in _answered(path, made):
        for name, reference in model_says.items():
            found = graph_says[name]
            if reference.shape != found.shape:
                raise FishpawError(f"The graph's {name} is {tuple(found.shape)}, the model's {tuple(reference.shape)}.", fix=_REPORT)
            if reference.dim() == 3:
                reference, found = reference[keep], found[keep]
            difference = float((found - reference).abs().max() / reference.abs().max().clamp_min(1.0))
            if not difference <= allowed:                          # NaN, too
                said = f"The graph's {name} differs from the model's by {difference:.1e}, where {allowed:.0e} is allowed."
                raise FishpawError(said, fix=_REPORT)
            worst = max(worst, difference)
    return worst


def _liken(path: Path, made: _Made) -> tuple[float, float]:
    """Cosines of the hidden states at tokens, mean and least; FishpawError if too small."""
    name = "last_hidden_state"
    every = torch.cat([
        functional.cosine_similarity(model_says[name][keep].double(), graph_says[name][keep].double())
        for keep, model_says, graph_says in _answered(path, made)
    ])  # fmt: skip
    mean, least = float(every.mean()), float(every.min())
    if not (mean >= _LEAST_MEAN and least >= _LEAST):
        said = f"In int8 this model's hidden states have a cosine of {mean:.4f} with those in fp32, {least:.4f} at worst."
        raise FishpawError(f"{said} At least {_LEAST_MEAN} and {_LEAST} are asked for.", fix="Export it without int8.")
    return mean, least


def _answered(path: Path, made: _Made) -> Iterator[tuple[Tensor, Arrays, Arrays]]:
    """Of each probe: where there are tokens, what the model answered, and what the graph does."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as reasons

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4                                    # what fails is said once, by us
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found = [session.run(list(made.outputs), {name: value.numpy() for name, value in probe.items()}) for probe in made.probes]
    except (reasons.Fail, reasons.InvalidGraph, reasons.NotImplemented, reasons.RuntimeException, reasons.InvalidArgument) as error:
        raise FishpawError(f"ONNX Runtime can't run the graph: {_first_line(error)}", fix=_REPORT) from error
    for probe, model_says, values in zip(made.probes, made.wanted, found, strict=True):
        graph_says = {name: torch.from_numpy(value) for name, value in zip(made.outputs, values, strict=True)}
        yield probe["attention_mask"].bool(), model_says, graph_says


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser speak to developers, in warnings and on the root logger, to which they add a handler."""
    disabled, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(max(disabled, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


def _size(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{name}*"))


def _first_line(error: BaseException) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


_REPORT = "Nothing was written. Please report it, with the model's config.json."
