"""Save a model as the TensorFlow checkpoint that Google's scripts and bert4keras read, without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fishpaw.errors import ConfigError
from fishpaw.files import folder_atomic
from fishpaw.model.transformer import Transformer
from fishpaw.weights.bundle import write_bundle
from fishpaw.weights.names import FAMILIES, TENSORFLOW_ENDINGS, TENSORFLOW_MODULES, Family
from fishpaw.weights.save import Saveable, check, described, export, reasons
from fishpaw.weights.translate import ignored, renamed

__all__ = ["save_tensorflow", "to_tensorflow"]


def save_tensorflow(model: Transformer, folder: str | Path, tokenizer: Saveable | None = None) -> None:
    """Write bert_model.ckpt.*, `checkpoint`, bert_config.json and the tokenizer's files to `folder`, whole or not at all.

    `load_model(folder)` gives the same model, bit for bit; to others bert_config.json is Google's, with fields that they ignore.
    Errors: ConfigError for a model without such a layout, and where a name would not be read back; FishpawError where the folder is
    not writable or the disk full.
    """
    check(model, folder, tokenizer)
    values, tensors = export(model.config, model.state_dict())
    family = FAMILIES.get(model.config.family)
    if family is None or family.variables is None or values["model_type"] not in family.types:
        published = ", ".join(one.name for one in FAMILIES.values() if one.variables is not None)
        own = f": {'; '.join(reasons(model.config, model.state_dict()))}" if values["model_type"] == "fishpaw" else ""
        raise ConfigError(f"This {model.config.family} model has no layout in TensorFlow{own}.",
                          fix=f"Published so: {published}, as they were; save it as safetensors.")  # fmt: skip
    variables = to_tensorflow(tensors, family)
    files = described(model, values, "bert_config.json")
    with folder_atomic(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")
        write_bundle(new / "bert_model.ckpt", variables)
        if tokenizer is not None:
            tokenizer.save(new)


def to_tensorflow(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """transformers' names and shapes -> Google's variables, kernels turned: `bert.encoder.layer.3.output.dense.weight` ->
    `bert/encoder/layer_3/output/dense/kernel`.

    Raises ConfigError for a tensor that has no place there (the decoder of a model whose tables are untied: a reader would tie them),
    and for one that the tables of weights/names.py would not read back.
    """
    variables: dict[str, Tensor] = {}
    expected: dict[str, tuple[str, bool]] = {}
    for name, tensor in tensors.items():
        found = _by_its_own_rule(name, family)
        if found is None and _UNTIED.fullmatch(name):
            raise ConfigError(f"{name}: a decoder of its own has no place in TensorFlow's layout.", fix="Save it as safetensors.")
        if found is None and ignored(name, family):
            continue
        variable, turned = expected[name] = found or _by_googles_rules(name, family)
        variables[variable] = tensor.t() if turned and tensor.dim() == 2 else tensor
    back = renamed(list(variables), family)
    for name, source in expected.items():
        if back.get(name) != source:
            raise ConfigError(f"{name}: as {source[0]} it would not be read back.", fix="Save it as safetensors.")
    return variables


# Modules whose matrices Google keeps as output_weights, not turned, and vectors as output_bias; the classifier is run_classifier.py's.
_OUTPUTS = ("cls.predictions", "cls.seq_relationship", "classifier")
_UNTIED = re.compile(r"cls\.predictions\.decoder\..*|lm_head\.weight")


def _by_its_own_rule(name: str, family: Family) -> tuple[str, bool] | None:
    """The variable of a tensor, and whether it lies turned there, by the family's own table; a number has as many digits as stars."""
    for theirs, variable in family.tensorflow.items():
        if match := re.fullmatch(re.escape(theirs).replace(r"\*", r"(\d+)", 1), name):
            stars = re.search(r"\*+", variable)
            number = match[1].zfill(len(stars[0])) if stars else ""
            return re.sub(r"\*+", number, variable.removeprefix("^")), variable.startswith("^")
    return None


def _by_googles_rules(name: str, family: Family) -> tuple[str, bool]:
    module, _, leaf = name.rpartition(".")
    if module in _OUTPUTS:
        chosen = f"output_{leaf}" if leaf == "bias" else "output_weights"
    elif module.endswith("LayerNorm"):
        chosen = "gamma" if leaf == "weight" else "beta"
    else:
        own = [ending for ending, value in TENSORFLOW_ENDINGS.items() if name.endswith(f".{value}") and "." in value]
        chosen = own[0] if own else "kernel" if leaf == "weight" else leaf
        module = module.removesuffix(f".{chosen}")
    for theirs, ours in TENSORFLOW_MODULES.items():
        module = re.sub(rf"(^|\.){re.escape(ours)}($|\.)", rf"\1{theirs}\2", module)
    if module.startswith(family.prefix):
        module = (family.variables or "") + module.removeprefix(family.prefix)
    path = re.sub(r"\blayer\.(\d+)", r"layer_\1", module).replace(".", "/")
    return f"{path}/{chosen}", TENSORFLOW_ENDINGS.get(chosen, "").startswith("^")
