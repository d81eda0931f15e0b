"""GPT2-ML and what bert4keras makes of GPT and GPT-2, under the names of their TensorFlow variables: against naive references in fp64 that
know nothing of fishpaw, and GPT2-ML against bert4torch.

The layers of GPT2-ML: x = e + attention(e); y = x + feed-forward(norm(x)); the next layer's e is norm(y); its embeddings have a norm.
Sources: github.com/imcaspar/gpt2-ml, github.com/bojone/bert4keras.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fishpaw.weights.formats import write_safetensors
from fishpaw.weights.load import inspect, load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.save import save
from fishpaw.weights.translate import renamed

V, D, LAYERS, H, UNITS, T = 31, 20, 12, 4, 17, 11                  # twelve layers: numbers of two digits
VALUES = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H, "intermediate_size": UNITS,
          "max_position_embeddings": 19, "layer_norm_eps": 1e-3}  # fmt: skip
CLOSE = 1e-9                                                       # fp64


def layer(prefix: str, names: dict[str, str], noise: torch.Generator) -> dict[str, Tensor]:
    shapes = {"query": (D, D), "key": (D, D), "value": (D, D), "out": (D, D), "up": (D, UNITS), "down": (UNITS, D)}
    made = {}
    for part, shape in shapes.items():
        made[f"{prefix}{names[part]}/kernel"] = 0.6 * torch.randn(*shape, generator=noise)
        made[f"{prefix}{names[part]}/bias"] = 0.6 * torch.randn(shape[1], generator=noise)
    for part in ("first", "second"):
        made[f"{prefix}{names[part]}/gamma"], made[f"{prefix}{names[part]}/beta"] = torch.randn(2, D, generator=noise)
    return made


GROVER = {"query": "query_layer", "key": "key_layer", "value": "value_layer", "out": "context_projection_layer", "up": "intermediate",
          "down": "output", "first": "LayerNorm_mlp_ln0", "second": "LayerNorm_mlp_ln1"}  # fmt: skip
KERAS = {"query": "attention/self/query", "key": "attention/self/key", "value": "attention/self/value", "out": "attention/output/dense",
         "up": "intermediate/dense", "down": "output/dense", "first": "attention/output/LayerNorm",
         "second": "output/LayerNorm"}  # fmt: skip
KERAS_2 = {part: name.replace("output/LayerNorm", "input/LayerNorm") for part, name in KERAS.items()}


def variables(family: str) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(3)
    names, scope = {"gpt2_ml": (GROVER, "newslm"), "gpt": (KERAS, "gpt"), "gpt2": (KERAS_2, "gpt")}[family]
    words, places = ("word_embed", "pos_embed") if family == "gpt2_ml" else ("word_embeddings", "position_embeddings")
    made = {f"{scope}/embeddings/{words}": 0.6 * torch.randn(V, D, generator=noise),
            f"{scope}/embeddings/{places}": 0.6 * torch.randn(19, D, generator=noise)}  # fmt: skip
    norm = {"gpt2_ml": "newslm/embeddings/LayerNorm_embed_norm", "gpt2": "gpt/output/LayerNorm"}.get(family)
    if norm is not None:
        made[f"{norm}/gamma"], made[f"{norm}/beta"] = torch.randn(2, D, generator=noise)
    for number in range(LAYERS):
        made |= layer(f"newslm/layer{number:02d}/" if family == "gpt2_ml" else f"gpt/transformer/layer_{number}/", names, noise)
    return made


def reference(family: str, tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """ids [b t] -> logits [b t v], all in fp64."""
    names, scope = {"gpt2_ml": (GROVER, "newslm"), "gpt": (KERAS, "gpt"), "gpt2": (KERAS_2, "gpt")}[family]
    held = {name: tensor.double() for name, tensor in tensors.items()}
    words, places = ("word_embed", "pos_embed") if family == "gpt2_ml" else ("word_embeddings", "position_embeddings")

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * held[f"{name}/gamma"] + held[f"{name}/beta"]

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ held[f"{name}/kernel"] + held[f"{name}/bias"]

    def attention(x: Tensor, prefix: str) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (dense(x, prefix + names[part]).view(b, t, H, D // H).transpose(1, 2) for part in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) / math.sqrt(D // H)
        scores = scores.masked_fill(torch.arange(t) > torch.arange(t)[:, None], float("-inf"))
        return dense((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, D), prefix + names["out"])

    def feed_forward(x: Tensor, prefix: str) -> Tensor:
        up = dense(x, prefix + names["up"])
        erf = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        tanh = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        return dense(tanh if family == "gpt2" else erf, prefix + names["down"])

    x = held[f"{scope}/embeddings/{words}"][ids] + held[f"{scope}/embeddings/{places}"][: ids.shape[1]]
    x = norm(x, "newslm/embeddings/LayerNorm_embed_norm") if family == "gpt2_ml" else x
    for number in range(LAYERS):
        prefix = f"newslm/layer{number:02d}/" if family == "gpt2_ml" else f"gpt/transformer/layer_{number}/"
        first, second = prefix + names["first"], prefix + names["second"]
        if family == "gpt2_ml":
            x = x + attention(x, prefix)
            x = norm(x + feed_forward(norm(x, first), prefix), second)
        elif family == "gpt":
            x = norm(x + attention(x, prefix), first)
            x = norm(x + feed_forward(x, prefix), second)
        else:
            x = x + attention(norm(x, first), prefix)
            x = x + feed_forward(norm(x, second), prefix)
    x = norm(x, "gpt/output/LayerNorm") if family == "gpt2" else x
    return x @ held[f"{scope}/embeddings/{words}"].T


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(VALUES), encoding="utf-8")
    write_safetensors(tensors, folder / "model.safetensors")
    return folder


IDS = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize("family", ["gpt2_ml", "gpt", "gpt2"])
def test_logits_from_variables(family, tmp_path):
    tensors = variables(family)
    model, report = inspect(write(tmp_path / "m", tensors), dtype=torch.float64)
    assert model.config.family == report.family == family and not report.new and not report.unused and "lm" in model.heads
    wanted = reference(family, tensors, IDS)
    with torch.no_grad():
        assert (model(IDS).logits - wanted).abs().max() <= CLOSE * wanted.abs().max()
    assert wanted.std() > 1


def exchange(one: str, other: str) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if one in name]:
            tensors[name], tensors[name.replace(one, other)] = tensors[name.replace(one, other)], tensors[name]

    return spoil


@pytest.mark.parametrize(("family", "spoil"), [
    ("gpt2_ml", exchange("query", "key")), ("gpt2_ml", exchange("ln0", "ln1")), ("gpt2_ml", exchange("layer10", "layer11")),
    ("gpt2_ml", exchange("layer01/", "layer10/")), ("gpt", exchange("query", "value")), ("gpt2", exchange("attention/input", "input")),
])  # fmt: skip
def test_exchanged_variables_are_found(family, spoil, tmp_path):
    """The planted faults."""
    tensors = variables(family)
    wanted = reference(family, tensors, IDS)
    spoil(tensors)
    with torch.no_grad():
        logits = load_model(write(tmp_path / "m", tensors), dtype=torch.float64)(IDS).logits
    assert (logits - wanted).abs().max() > 1e4 * CLOSE * wanted.abs().max()      # twelve norms in a row forget much


def test_gpt2_ml_is_neither_gpt_nor_gpt2(tmp_path):
    """With the norms where GPT has them it is another model: the fault that a port would have."""
    folder, wanted = write(tmp_path / "m", variables("gpt2_ml")), reference("gpt2_ml", variables("gpt2_ml"), IDS)
    model, _ = inspect(folder, changes={"norm_at": "post"}, dtype=torch.float64)
    with torch.no_grad():
        assert (model(IDS).logits - wanted).abs().max() > 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("family", ["gpt2_ml", "gpt", "gpt2"])
def test_saved_and_loaded_again(family, tmp_path):
    model = load_model(write(tmp_path / "m", variables(family)))
    save(model, tmp_path / "out")
    again, report = inspect(tmp_path / "out")
    assert again.config == model.config and report.family == family and not report.new and not report.unused
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    kind = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["model_type"]
    assert kind == {"gpt2_ml": "gpt2_ml", "gpt": "fishpaw", "gpt2": "gpt2"}[family]      # transformers' GPT is always 4 x as wide inside


def test_gradients_of_gpt2_ml(tmp_path):
    tensors = {name: value.double().requires_grad_() for name, value in variables("gpt2_ml").items()}
    model = load_model(write(tmp_path / "m", {name: value.detach() for name, value in tensors.items()}), dtype=torch.float64)
    direction = torch.randn(3, T, V, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (reference("gpt2_ml", tensors, IDS) * direction).sum().backward()
    (model(IDS).logits * direction).sum().backward()
    known = renamed(list(tensors), FAMILIES["gpt2_ml"])
    held = dict(model.named_parameters())
    for ours, theirs in (("layers.3.feed_forward.up.weight", "newslm.layer.3.intermediate.weight"),
                         ("layers.11.attention.output.weight", "newslm.layer.11.context_projection_layer.weight"),
                         ("positions.0.table.weight", "newslm.embeddings.pos_embed")):  # fmt: skip
        name, turned = known[theirs]
        wanted = tensors[name].grad.T if turned else tensors[name].grad
        assert wanted.abs().max() > 0.1 and (held[ours].grad - wanted).abs().max() <= 1e-8 * wanted.abs().max()


def test_step_by_step_is_at_once(tmp_path):
    model = load_model(write(tmp_path / "m", variables("gpt2_ml")), dtype=torch.float64)
    with torch.no_grad():
        whole, cache = model(IDS).logits, model.new_cache()
        steps = [model(IDS[:, :3], cache=cache).logits, *(model(IDS[:, i], cache=cache).logits.view(3, 1, V) for i in range(3, T))]
    assert (torch.cat(steps, 1) - whole).abs().max() <= CLOSE * whole.abs().max()


@pytest.mark.parity
def test_gpt2_ml_is_bert4torchs(bert4torch, tmp_path):
    """Its weights are filled by hand from the variables, not through our table."""
    tensors = variables("gpt2_ml")
    theirs = bert4torch("models.gpt2_ml.modeling_gpt2_ml").GPT2_ML(
        vocab_size=V, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=H, intermediate_size=UNITS, hidden_act="gelu",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=19, pad_token_id=0, layer_norm_eps=1e-3,
        segment_vocab_size=0, tie_word_embeddings=True, layer_type="Gpt2MlLayer").double().eval()  # fmt: skip
    places = {"query": "multiHeadAttention.q", "key": "multiHeadAttention.k", "value": "multiHeadAttention.v",
              "out": "multiHeadAttention.o", "up": "feedForward.intermediateDense", "down": "feedForward.outputDense",
              "first": "attnLayerNorm", "second": "ffnLayerNorm"}  # fmt: skip
    state = {f"embeddings.{mine}.weight": tensors[f"newslm/embeddings/{name}"]
             for mine, name in (("word_embeddings", "word_embed"), ("position_embeddings", "pos_embed"))}  # fmt: skip
    modules = {"newslm/embeddings/LayerNorm_embed_norm": "embeddings.layerNorm"} | {
        f"newslm/layer{number:02d}/{GROVER[part]}": f"decoderLayer.{number}.{place}"
        for number in range(LAYERS) for part, place in places.items()
    }  # fmt: skip
    leaves = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition("/")
        if module in modules:
            state[f"{modules[module]}.{leaves[leaf]}"] = value.T if leaf == "kernel" else value
    missing, unexpected = theirs.load_state_dict({name: value.double() for name, value in state.items()}, strict=False)
    assert not unexpected and set(missing) == {"lm_head.weight"}     # tied
    ids = IDS.clamp_min(1)                                         # their padding is 0
    with torch.no_grad():
        given = theirs([ids])
        logits = load_model(write(tmp_path / "m", tensors), dtype=torch.float64)(ids).logits
    given = given[-1] if isinstance(given, list | tuple) else given
    assert given.shape == logits.shape and (given - logits).abs().max() <= 1e-6 * logits.abs().max()
