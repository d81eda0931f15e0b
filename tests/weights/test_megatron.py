"""Ranks of a model-parallel GPT-2 are joined to the model that they compute together."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from fishpaw.errors import CheckpointError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.decoders import GPT2
from fishpaw.weights.formats import find_weights, read_folder, read_tensors
from fishpaw.weights.load import inspect, load_model
from fishpaw.weights.megatron import merge_ranks, to_gpt2
from fishpaw.weights.translate import read_config

VOCABULARY, POSITIONS, HEADS, WIDTH, LAYERS = 28, 11, 4, 3, 2
HIDDEN = HEADS * WIDTH
CONFIG = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}
# TsinghuaAI's CPM-LM; its gelu is the tanh form.
CPM = {"model_type": "gpt2", "vocab_size": 30000, "n_positions": 1024, "n_embd": 2560, "n_layer": 32, "n_head": 32,
       "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 15, 9, 2, 6]])
State = dict[str, Tensor]


def full() -> State:
    random = torch.Generator().manual_seed(20201120)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) * 0.6

    state = {"word_embeddings.weight": noise(VOCABULARY, HIDDEN), "position_embeddings.weight": noise(POSITIONS, HIDDEN)}
    for layer in range(LAYERS):
        at = f"transformer.layers.{layer}."
        shapes = {"attention.query_key_value": (3 * HIDDEN, HIDDEN), "attention.dense": (HIDDEN, HIDDEN),
                  "mlp.dense_h_to_4h": (4 * HIDDEN, HIDDEN), "mlp.dense_4h_to_h": (HIDDEN, 4 * HIDDEN)}  # fmt: skip
        for part in ("input_layernorm", "post_attention_layernorm"):
            state |= {f"{at}{part}.weight": 1 + noise(HIDDEN), f"{at}{part}.bias": noise(HIDDEN)}
        for part, shape in shapes.items():
            state |= {f"{at}{part}.weight": noise(*shape), f"{at}{part}.bias": noise(shape[0])}
    return state | {"transformer.final_layernorm.weight": 1 + noise(HIDDEN), "transformer.final_layernorm.bias": noise(HIDDEN)}


def split(state: State, count: int) -> list[State]:
    """What each process holds: its heads of each of q, k, v, its rows of the vocabulary, its units of the inner layer."""
    ranks: list[State] = [{} for _ in range(count)]
    for name, tensor in state.items():
        for number, rank in enumerate(ranks):
            if "query_key_value" in name:
                rows = torch.arange(len(tensor)).reshape(3, count, -1)[:, number].reshape(-1)
                rank[name] = tensor[rows]
            elif "h_to_4h" in name and "4h_to_h" not in name or name.startswith("word"):
                rank[name] = tensor.reshape(count, -1, *tensor.shape[1:])[number]
            elif name.endswith(("attention.dense.weight", "4h_to_h.weight")):
                size = tensor.shape[1] // count
                rank[name] = tensor[:, number * size : (number + 1) * size]
            else:
                rank[name] = tensor.clone()
            rank[name] = rank[name].contiguous()
    return ranks


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normed(x: Tensor, state: State, name: str) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def computed_together(ranks: list[State], ids: Tensor, *, gpt2_ml: bool = False) -> Tensor:
    """The logits [t v] of all processes together, each with its own tensors: sums where Megatron reduces, joined where it gathers.
    `gpt2_ml`: with GPT2-ML's order instead, where attention reads the residual stream as it is."""
    ranks = [{name: tensor.double() for name, tensor in rank.items()} for rank in ranks]
    first, length = ranks[0], ids.shape[1]
    words = torch.cat([rank["word_embeddings.weight"] for rank in ranks])
    x = words[ids[0]] + first["position_embeddings.weight"][:length]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(LAYERS):
        at = f"transformer.layers.{layer}."
        inner, total = x if gpt2_ml else normed(x, first, at + "input_layernorm"), first[at + "attention.dense.bias"].clone()
        for rank in ranks:
            three = inner @ rank[at + "attention.query_key_value.weight"].T + rank[at + "attention.query_key_value.bias"]
            q, k, v = (part.reshape(length, -1, WIDTH).transpose(0, 1) for part in three.chunk(3, dim=1))          # [h t d]
            shares = (q @ k.mT / math.sqrt(WIDTH)).masked_fill(hidden, -math.inf).softmax(-1)
            total = total + (shares @ v).transpose(0, 1).reshape(length, -1) @ rank[at + "attention.dense.weight"].T
        x = x + total
        inner, total = normed(x, first, at + "post_attention_layernorm"), first[at + "mlp.dense_4h_to_h.bias"].clone()
        for rank in ranks:
            units = gelu(inner @ rank[at + "mlp.dense_h_to_4h.weight"].T + rank[at + "mlp.dense_h_to_4h.bias"])
            total = total + units @ rank[at + "mlp.dense_4h_to_h.weight"].T
        x = x + total
    x = normed(x, first, "transformer.final_layernorm")
    return torch.cat([x @ rank["word_embeddings.weight"].T for rank in ranks], dim=1)


def folder_of(path, ranks: list[State], *, key: str | None = "model"):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    for number, rank in enumerate(ranks):
        torch.save({key: rank, "iteration": 80000} if key else rank, path / f"mp_rank_{number:02}_model_states.pt")
    return path


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_was_split_is_joined_bit_for_bit(count, dtype):
    state = {name: tensor.to(dtype) for name, tensor in full().items()}
    assert same(merge_ranks(split(state, count)), state)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_model_computes_what_the_ranks_do_together(tmp_path, count):
    ranks = split(full(), count)
    model, report = inspect(folder_of(tmp_path / "x", ranks), dtype=torch.float64)
    assert report.family == "gpt2" and report.new == () and report.unused == ()
    torch.testing.assert_close(model(IDS).logits[0], computed_together(ranks, IDS), atol=1e-11, rtol=0)
    whole = load_model(folder_of(tmp_path / "y", [full()]), dtype=torch.float64)
    assert torch.equal(model(IDS).logits, whole(IDS).logits)


def test_another_order_of_the_layer_is_another_model(tmp_path):
    """GPT2-ML's: with it the logits are far from the ranks', so that the test above can tell."""
    ranks = split(full(), 2)
    logits = load_model(folder_of(tmp_path / "x", ranks), dtype=torch.float64)(IDS).logits[0]
    assert (logits - computed_together(ranks, IDS, gpt2_ml=True)).abs().max() > 0.1


def test_a_plain_join_of_q_k_v_is_another_model(tmp_path):
    """[q k v] of rank 0 above [q k v] of rank 1, as a script that knows nothing of the three would join them."""
    ranks = split(full(), 2)
    joined = merge_ranks(ranks)
    for name in joined:
        if "query_key_value" in name:
            joined[name] = torch.cat([rank[name] for rank in ranks])
    logits = load_model(folder_of(tmp_path / "x", [joined]), dtype=torch.float64)(IDS).logits[0]
    assert (logits - computed_together(ranks, IDS)).abs().max() > 0.1


@pytest.mark.parametrize("key", ["module", "model", None])
def test_a_folder_any_of_its_files_and_how_torch_wrapped_them(tmp_path, key):
    folder = folder_of(tmp_path / "x", split(full(), 2), key=key)
    expected = to_gpt2(full())
    assert find_weights(folder).name == "mp_rank_00_model_states.pt"
    for tensors in (read_folder(folder), read_tensors(folder / "mp_rank_01_model_states.pt")):
        assert same(dict(tensors), expected) and [file.name[:10] for file in tensors.files] == ["mp_rank_00", "mp_rank_01"]
    assert expected["transformer.h.1.attn.c_attn.weight"].shape == (HIDDEN, 3 * HIDDEN)


def test_the_size_of_cpm():
    with torch.device("meta"):
        model = Transformer(read_config(CPM, GPT2).change({"heads": ("lm",)}))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 30000 * 2560 + 1024 * 2560 + 32 * (12 * 2560**2 + 13 * 2560) + 2 * 2560
    assert round(count / 1e9, 3) == 2.597


# ranks that do not fit

def spoiled(how: str) -> list[State]:
    ranks = split(full(), 2)
    norm, dense = "transformer.layers.1.input_layernorm.bias", "transformer.layers.0.attention.dense.weight"
    if how == "value":
        ranks[1][norm][3] += 1e-6
    elif how == "missing":
        del ranks[1][norm]
    elif how == "extra":
        ranks[1]["transformer.layers.7.input_layernorm.bias"] = torch.ones(3)
    elif how == "unknown":
        for rank in ranks:
            rank["lm_head.weight"] = torch.ones(3, 3)
    elif how == "shape":
        ranks[1][dense] = ranks[1][dense][:, :-1]
    elif how == "axes":
        for rank in ranks:
            rank[dense] = rank[dense].reshape(-1)
    elif how == "thirds":
        for rank in ranks:
            rank["transformer.layers.0.attention.query_key_value.weight"] = torch.ones(17, HIDDEN)
    elif how == "type":
        ranks[1][dense] = ranks[1][dense].half()
    return ranks


@pytest.mark.parametrize(("how", "message"), [
    ("value", r"'transformer.layers.1.input_layernorm.bias' should be equal on all ranks, but differs on rank 1"),
    ("missing", r"'transformer.layers.1.input_layernorm.bias' is on rank 0 only"),
    ("extra", r"'transformer.layers.7.input_layernorm.bias' is on rank 1 only"),
    ("unknown", r"'lm_head.weight' is none of a Megatron GPT-2"),
    ("shape", r"'transformer.layers.0.attention.dense.weight' has the shapes \[\[12, 6\], \[12, 5\]\]"),
    ("axes", r"'transformer.layers.0.attention.dense.weight' has the shapes"),
    ("thirds", r"'transformer.layers.0.attention.query_key_value.weight' has 17 rows"),
    ("type", r"'transformer.layers.0.attention.dense.weight' .*float16"),
])  # fmt: skip
def test_ranks_of_two_models_are_told(tmp_path, how, message):
    with pytest.raises(CheckpointError, match=message):
        merge_ranks(spoiled(how))
    with pytest.raises(CheckpointError, match=f"x: .*{message}"):
        load_model(folder_of(tmp_path / "x", spoiled(how)))


def test_equal_nans_are_equal():
    ranks = split(full(), 2)
    for rank in ranks:
        rank["transformer.final_layernorm.bias"][0] = math.nan
    assert merge_ranks(ranks)["transformer.final_layernorm.bias"][0].isnan()


def test_a_missing_rank_is_named(tmp_path):
    folder = folder_of(tmp_path / "x", split(full(), 4))
    (folder / "mp_rank_02_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="rank 2 of the model is missing"):
        load_model(folder)
    (folder / "mp_rank_03_model_states.pt").write_bytes(b"")
    (folder / "mp_rank_02_model_states.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="mp_rank_02_model_states.pt: is empty"):
        load_model(folder)


def test_the_last_rank_missing_is_seen_in_the_vocabulary(tmp_path):
    folder = folder_of(tmp_path / "x", split(full(), 4)[:3])
    with pytest.raises(CheckpointError, match="tensors of other shapes than the config's"):
        load_model(folder)


def test_no_ranks():
    with pytest.raises(CheckpointError, match="no ranks"):
        merge_ranks([])
