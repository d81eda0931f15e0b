"""ONNX for the benchmarks: transformers' model through torch's exporter, quantised by ONNX Runtime, beside what fishpaw exports."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from benchmarks import models
from torch import Tensor, nn

from fishpaw.weights.load import load_model

__all__ = ["exported", "ours", "quantised", "session"]


class _Hidden(nn.Module):
    """ids [b t] -> hidden [b t d], nothing else: what the others compute, too."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(ids).last_hidden_state
        return hidden


def exported(folder: Path) -> Path:
    """transformers' model as ONNX with rows and length left open; made once a folder."""
    path = folder.parent / f"{folder.name}.onnx"
    if not path.exists():
        model = _Hidden(models.transformers_model(folder))
        ids = torch.randint(5, 100, (2, 7))
        with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (ids,), str(path), input_names=["ids"], output_names=["hidden"], dynamo=True, verbose=False,
                              dynamic_shapes=({0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=128)},))
    return path


def quantised(path: Path) -> Path:
    """The same with int8 weights, a scale a channel, and activations quantised as they come: ONNX Runtime's own way."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    done = path.with_suffix(".int8.onnx")
    if not done.exists():
        quantize_dynamic(str(path), str(done), per_channel=True, weight_type=QuantType.QInt8)
    return done


def ours(folder: Path, *, int8: bool) -> Path:
    """fishpaw's own export, which compares it with the model before it keeps it; FishpawError where they differ."""
    module: Any = import_module("fishpaw.weights.onnx")
    with torch.inference_mode(mode=False), torch.no_grad():
        model = load_model(folder)
        made = module.export_int8(model, folder.parent / "ours-int8") if int8 else module.export(model, folder.parent / "ours-fp32")
    return Path(made.file)


def session(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """A call ids [b t] -> hidden [b t d], the graph's first output, into ONNX Runtime with all of its optimisations. Its threads spin
    within a call, not between calls, where they would slow down whoever comes next."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names, outputs = ([one.name for one in some] for some in (runtime.get_inputs(), runtime.get_outputs()))

    def call(ids: Tensor) -> Tensor:
        facts = {"ids": ids, "input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return torch.from_numpy(runtime.run(outputs[:1], {name: facts[name].numpy() for name in names})[0])

    return call
