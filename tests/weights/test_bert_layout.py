"""NEZHA, NEZHA-GEN and RoFormerV2, which transformers doesn't have: from TensorFlow variables under their published names, against a
reference in fp64 that knows nothing of fishpaw, and from PyTorch files against an older transformers and bert4torch.

Published by Huawei (github.com/huawei-noah/Pretrained-Language-Model), as bert4keras reads them, and by ZhuiyiTechnology/roformer-v2.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.weights.bert_layout import ROFORMER
from fishpaw.weights.bundle import write_bundle
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import inspect, load_model
from fishpaw.weights.save import save
from fishpaw.weights.tensorflow import open_bundle
from fishpaw.weights.to_tensorflow import save_tensorflow
from fishpaw.weights.translate import heads_of

torch.set_num_threads(1)

NEZHA = Path(__file__).resolve().parent / "nezha"
LENGTH, VOCABULARY, HIDDEN, HEADS, LAYERS, INNER = 11, 31, 18, 3, 3, 17
SAID = {"norm_type": "rms_norm", "use_bias": False, "hidden_act": "relu"}                # by a port of RoFormerV2
GOOGLE = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
          "intermediate_size": INNER, "max_position_embeddings": 19, "type_vocab_size": 2, "hidden_act": "gelu"}  # fmt: skip
# family -> what stands in its config.json, its positions, whether it norms and adds biases as BERT does, the mask that it is read with.
MODELS: dict[str, tuple[dict[str, Any], str, bool, str]] = {
    "nezha": ({"use_relative_position": True, "max_relative_position": 3}, "relative", True, "full"),
    "nezha as a dialogue model": ({"use_relative_position": True, "max_relative_position": 2}, "relative", True, "causal"),
    "nezha_gen": ({}, "learned", True, "causal"),
    "roformer_v2": ({"hidden_act": "relu"}, "turned", False, "full"),
}


# -- the reference ----------------------------------------------------------------------------------------------------------------------


def variables(name: str) -> dict[str, Tensor]:
    """Random values under the published names; kernels are [in, out]."""
    _, positions, plain, _ = MODELS[name]
    noise = torch.Generator().manual_seed(len(name))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64) * 0.6

    found: dict[str, Tensor] = {"bert/embeddings/word_embeddings": draw(VOCABULARY, HIDDEN)}

    def dense(place: str, rows: int, columns: int) -> None:
        found[f"{place}/kernel"] = draw(rows, columns)
        if plain:
            found[f"{place}/bias"] = draw(columns)

    def norm(place: str) -> None:
        if plain:
            found[f"{place}/LayerNorm/gamma"], found[f"{place}/LayerNorm/beta"] = 1 + draw(HIDDEN), draw(HIDDEN)

    if name != "nezha_gen":
        found["bert/embeddings/token_type_embeddings"] = draw(2, HIDDEN)
    if positions == "learned":
        found["bert/embeddings/position_embeddings"] = draw(19, HIDDEN)
    norm("bert/embeddings")
    for layer in range(LAYERS):
        place = f"bert/encoder/layer_{layer}"
        for part in ("query", "key", "value"):
            dense(f"{place}/attention/self/{part}", HIDDEN, HIDDEN)
        dense(f"{place}/attention/output/dense", HIDDEN, HIDDEN)
        norm(f"{place}/attention/output")
        dense(f"{place}/intermediate/dense", HIDDEN, INNER)
        dense(f"{place}/output/dense", INNER, HIDDEN)
        norm(f"{place}/output")
    if plain:
        dense("cls/predictions/transform/dense", HIDDEN, HIDDEN)
        norm("cls/predictions/transform")
        found["cls/predictions/output_bias"] = draw(VOCABULARY)
    return found


def reference(name: str, held: dict[str, Tensor], ids: list[int], segments: list[int], fault: str = "") -> tuple[list[Tensor], Tensor]:
    """One text -> the embedding and each layer's states [t d], and the logits [t v]; a loop over heads, queries and keys."""
    values, positions, plain, mask = MODELS[name]
    size, reach = HIDDEN // HEADS, values.get("max_relative_position", 0)

    def dense(x: Tensor, place: str) -> Tensor:
        return x @ held[f"{place}/kernel"] + (held[f"{place}/bias"] if plain else 0)

    def norm(x: Tensor, place: str) -> Tensor:
        if not plain:
            centred = x - x.mean(-1, keepdim=True) if fault == "mean" else x
            return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12)
        away = x - x.mean(-1, keepdim=True)
        scaled = away / torch.sqrt((away**2).mean(-1, keepdim=True) + 1e-12)
        return scaled * held[f"{place}/LayerNorm/gamma"] + held[f"{place}/LayerNorm/beta"]

    def relative(query: int, key: int) -> Tensor:
        row = max(-reach, min(reach, query - key if fault == "sign" else key - query)) + reach
        waves = [row / 10_000 ** (2 * (unit // 2) / size) for unit in range(size)]
        return torch.tensor([math.cos(wave) if unit % 2 else math.sin(wave) for unit, wave in enumerate(waves)], dtype=torch.float64)

    def turn(x: Tensor, at: int) -> Tensor:
        out = torch.empty_like(x)
        for pair in range(size // 2):
            angle = at / 10_000 ** (2 * pair / size)
            one, two = x[2 * pair], x[2 * pair + 1]
            out[2 * pair] = one * math.cos(angle) - two * math.sin(angle)
            out[2 * pair + 1] = two * math.cos(angle) + one * math.sin(angle)
        return out

    x = held["bert/embeddings/word_embeddings"][ids]
    if name != "nezha_gen":
        x = x + held["bert/embeddings/token_type_embeddings"][segments]
    if positions == "learned":
        x = x + held["bert/embeddings/position_embeddings"][: len(ids)]
    x = norm(x, "bert/embeddings")
    states = [x]
    for layer in range(LAYERS):
        place = f"bert/encoder/layer_{layer}"
        q, k, v = (dense(x, f"{place}/attention/self/{part}") for part in ("query", "key", "value"))
        out = torch.zeros_like(x)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(ids)):
                seen = range(i + 1) if mask == "causal" and fault != "ahead" else range(len(ids))
                rows = [relative(i, j) if positions == "relative" else torch.zeros(size, dtype=torch.float64) for j in seen]
                if positions == "turned":
                    scores = [turn(q[i, part], i) @ turn(k[j, part], j) for j in seen]
                else:
                    scores = [q[i, part] @ (k[j, part] + row) for j, row in zip(seen, rows, strict=True)]
                weights = torch.softmax(torch.stack(scores) / math.sqrt(size), 0)
                out[i, part] = sum(weight * (v[j, part] + row) for weight, j, row in zip(weights, seen, rows, strict=True))
        x = norm(x + dense(out, f"{place}/attention/output/dense"), f"{place}/attention/output")
        up = dense(x, f"{place}/intermediate/dense")
        up = up.relu() if values.get("hidden_act") == "relu" else up * (1 + torch.erf(up / math.sqrt(2))) / 2
        x = norm(x + dense(up, f"{place}/output/dense"), f"{place}/output")
        states.append(x)
    table = held["bert/embeddings/word_embeddings"]
    if not plain:
        return states, x @ table.T
    y = dense(x, "cls/predictions/transform/dense")
    y = norm(y * (1 + torch.erf(y / math.sqrt(2))) / 2, "cls/predictions/transform")
    return states, y @ table.T + held["cls/predictions/output_bias"]


# -- against it -------------------------------------------------------------------------------------------------------------------------


def bundle(name: str, folder: Path) -> dict[str, Tensor]:
    held = variables(name)
    write_bundle(folder / "bert_model.ckpt", held)
    (folder / "bert_config.json").write_text(json.dumps(GOOGLE | MODELS[name][0]), encoding="utf-8")
    return held


def inputs(left: bool) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(3)
    ids, segments = (torch.randint(0, count, (3, LENGTH), generator=noise) for count in (VOCABULARY, 2))
    keep = torch.arange(LENGTH) < torch.tensor([[7], [LENGTH], [4]])
    return ids, segments, keep.flip(1) if left else keep


def farthest(name: str, held: dict[str, Tensor], model: Any, *, left: bool = False, fault: str = "") -> float:
    ids, segments, keep = inputs(left)
    with torch.no_grad():
        found = model(ids, segments=segments, padding=keep, all_hidden=True)
    worst = 0.0
    for row in range(3):
        kept = keep[row]
        states, logits = reference(name, held, ids[row, kept].tolist(), segments[row, kept].tolist(), fault)
        for one, other in zip([*found.all_hidden, found.logits], [*states, logits], strict=True):
            assert other.std() > 0.05
            worst = max(worst, float((one[row, kept] - other).abs().max() / max(1.0, float(other.abs().max()))))
    return worst


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_a_tensorflow_bundle_is_the_reference(name, left, tmp_path):
    held = bundle(name, tmp_path)
    family, mask = name.split()[0], MODELS[name][3] if "dialogue" in name else None
    model = load_model(tmp_path, dtype=torch.float64, mask=mask)
    assert model.config.family == family
    assert farthest(name, held, model, left=left) <= 1e-11                               # rounding of fp64
    for fault in {"nezha": ["sign"], "nezha as a dialogue model": ["ahead"], "nezha_gen": ["ahead"], "roformer_v2": ["mean"]}[name]:
        assert farthest(name, held, model, left=left, fault=fault) > 1e-2


@pytest.mark.parametrize("name", ["nezha", "roformer_v2"])
def test_gradients_are_the_references(name, tmp_path):
    held = {key: value.requires_grad_() for key, value in bundle(name, tmp_path).items()}
    model = load_model(tmp_path, dtype=torch.float64)
    ids, segments, _ = inputs(False)
    probe = torch.randn(LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (reference(name, held, ids[1].tolist(), segments[1].tolist())[1] * probe).sum().backward()
    (model(ids[1:2], segments=segments[1:2]).logits[0] * probe).sum().backward()
    pairs = [(model.embedding.tokens.weight.grad, held["bert/embeddings/word_embeddings"].grad)]
    for layer in range(LAYERS):
        attention, place = model.layers[layer].attention, f"bert/encoder/layer_{layer}/attention/self"
        kernels = [held[f"{place}/{part}/kernel"].grad for part in ("query", "key", "value")]
        pairs += zip(attention.project.weight.grad.chunk(3), (kernel.T for kernel in kernels if kernel is not None), strict=True)
    for mine, theirs in pairs:
        assert mine is not None and theirs is not None and theirs.abs().max() > 1e-3
        assert (mine - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_it_goes_back_to_the_same_bundle_and_to_a_folder(name, tmp_path):
    (tmp_path / "in").mkdir()
    held = bundle(name, tmp_path / "in")
    model = load_model(tmp_path / "in", dtype=torch.float64)
    save_tensorflow(model, tmp_path / "out")
    found = open_bundle(tmp_path / "out" / "bert_model.ckpt")
    assert set(found) == set(held) and all(torch.equal(found[key], value) for key, value in held.items())
    save(model, tmp_path / "folder")
    for folder in ("out", "folder"):
        again, report = inspect(tmp_path / folder, dtype=torch.float64)
        assert report.family == name.split()[0] and again.config == model.config and not report.new and not report.unused
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_plain_bert_is_not_taken_for_nezha_and_nezha_not_for_bert(tmp_path):
    held = bundle("nezha", tmp_path)
    assert inspect(tmp_path)[1].family == "nezha"
    values = {key: value for key, value in GOOGLE.items() if key != "use_relative_position"}
    (tmp_path / "bert_config.json").write_text(json.dumps(values), encoding="utf-8")
    write_bundle(tmp_path / "bert_model.ckpt", {**held, "bert/embeddings/position_embeddings": torch.zeros(19, HIDDEN)})
    assert inspect(tmp_path)[1].family == "bert"


def test_roformer_v2_with_a_projection_is_refused(tmp_path):
    bundle("roformer_v2", tmp_path)
    (tmp_path / "bert_config.json").write_text(json.dumps(GOOGLE | SAID | {"embedding_size": 7}), encoding="utf-8")
    with pytest.raises(ConfigError, match="embedding_size is 7"):
        load_model(tmp_path)


@pytest.mark.parametrize("changes", [{"norm_type": "layer_norm"}, {"norm_type": "rms_norm", "use_bias": True}])
def test_half_a_roformer_v2_is_refused(tmp_path, changes):
    bundle("roformer_v2", tmp_path)
    values = GOOGLE | SAID | {"model_type": "roformer"} | changes
    (tmp_path / "bert_config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises((ConfigError, CheckpointError), match="use_bias"):
        load_model(tmp_path)


@pytest.mark.parametrize(("values", "activation"), [({}, None), ({"pooler_activation": "linear"}, "linear")])
def test_roformer_sim_pools_as_it_says(values, activation):
    head, = heads_of(values, {"roformer.pooler.dense.weight"}, ROFORMER)
    assert head == {"name": "pooler"} | ({} if activation is None else {"activation": activation})


# -- against others ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretraining", "mlm", "classification", "causal"])
def test_nezha_is_that_of_the_last_transformers_that_had_it(name, tmp_path):
    """Its folders and its outputs are from make_nezha_outputs.py."""
    stored = np.load(NEZHA / f"{name}.npz")
    theirs = {key: torch.from_numpy(stored[key]) for key in stored.files}
    ids, segments, keep = theirs.pop("ids"), theirs.pop("segments"), theirs.pop("keep")
    ours, report = inspect(NEZHA / name)
    assert report.family == "nezha" and not report.new and not report.unused
    assert (ours.config.mask == "causal") is (name == "causal")

    def far(model: Any) -> float:
        with torch.no_grad():
            out = model(ids, segments=segments, padding=keep, all_hidden=True)
        mine = {f"hidden {i}": state for i, state in enumerate(out.all_hidden)}
        mine |= {"prediction_logits": out.logits, "logits": out.logits if out.classes is None else out.classes,
                 "seq_relationship_logits": out.nsp, "pooler_output": out.pooled}  # fmt: skip
        pairs = [(mine[key], value) for key, value in theirs.items()]
        pairs = [(one[keep], other[keep]) if one.shape[:2] == ids.shape else (one, other) for one, other in pairs]
        assert all(other.std() > 0.05 for _, other in pairs)
        return max(float((one - other).abs().max() / max(1.0, float(other.abs().max()))) for one, other in pairs)

    assert far(ours) <= 1e-5
    assert far(inspect(NEZHA / name, changes={"position": {"name": "nezha", "reach": 1}})[0]) > 1e-2       # the planted fault
    save(ours, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    before = json.loads((NEZHA / name / "config.json").read_text(encoding="utf-8"))
    assert (values["model_type"], values["architectures"]) == ("nezha", before["architectures"])
    bare = "nezha." if name == "causal" else ""                                          # which they leave out for a backbone alone
    assert set(read_folder(tmp_path)) == {bare + key for key in read_folder(NEZHA / name)} - {"cls.predictions.decoder.bias"}
    assert far(load_model(tmp_path)) <= 1e-5


def test_a_nezha_under_berts_name_is_read(tmp_path):
    """Ports of before transformers had it: model_type "bert", use_relative_position, BERT's prefix."""
    values = json.loads((NEZHA / "pretraining" / "config.json").read_text(encoding="utf-8"))
    values |= {"model_type": "bert", "use_relative_position": True}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    tensors = {name.replace("nezha.", "bert."): value for name, value in dict(read_folder(NEZHA / "pretraining")).items()}
    write_safetensors(tensors, tmp_path / "model.safetensors")
    ours, report = inspect(tmp_path)
    one = load_model(NEZHA / "pretraining")
    assert report.family == "nezha" and not report.new and not report.unused and ours.config == one.config
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::ResourceWarning")                                   # it leaves the configuration's file open
def test_roformer_v2_is_bert4torchs(tmp_path):
    """The norm that release 0.6.2 registers for RoFormerV2 takes the mean off, which bert4keras's doesn't: its other one, with weights of
    1, is meant. Its NEZHA is no reference: it needs Python 3.12 and leaves out the division of the scores."""
    build = bert4torch("models").build_transformer_model
    own = {"pos_emb_type": "rotary", "pad_token_id": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
           "initializer_range": 0.02, "max_position": 19, "layer_norm_mode": "rmsnorm"}  # fmt: skip
    (tmp_path / "bert4torch_config.json").write_text(json.dumps(GOOGLE | SAID | own), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(GOOGLE | SAID | {"model_type": "roformer"}), encoding="utf-8")
    stored = {}
    for key, value in variables("roformer_v2").items():
        spelled = key.replace("bert/", "roformer/").replace("layer_", "layer/").replace("/", ".").removesuffix(".kernel")
        stored[f"{spelled}.weight"] = (value.T if key.endswith("kernel") else value).float().contiguous()
    stored["cls.predictions.decoder.weight"] = stored["roformer.embeddings.word_embeddings.weight"].clone()
    write_safetensors(stored, tmp_path / "model.safetensors")
    theirs = build(config_path=str(tmp_path / "bert4torch_config.json"), checkpoint_path=str(tmp_path / "model.safetensors"),
                   model="roformer_v2", with_mlm="linear", verbose=0).eval()  # fmt: skip
    ours, report = inspect(tmp_path)
    assert report.family == "roformer_v2" and not report.new and not report.unused
    ids, segments, keep = inputs(left=False)
    ids = (1 + ids % (VOCABULARY - 1)).where(keep, 0)                                    # it masks what has the padding's id
    with torch.no_grad():
        hidden, logits = theirs([ids, segments])
        found = ours(ids, segments=segments, padding=keep)
        halves = inspect(tmp_path, changes={"position": {"name": "rotary", "layout": "half"}})[0](ids, segments=segments, padding=keep)
    for one, other in ((found.hidden, hidden), (found.logits, logits)):
        assert other[keep].std() > 0.05
        assert (one - other)[keep].abs().max() <= 1e-5 * max(1.0, float(other[keep].abs().max()))
    assert (halves.hidden - hidden)[keep].abs().max() > 1e-2                             # the planted fault


def bert4torch(part: str) -> Any:
    """A module of bert4torch. Release 0.6.2 imports torchvision, undeclared, for models that nobody asked for: empty modules stand in."""
    if importlib.util.find_spec("bert4torch") is None:
        pytest.skip("bert4torch is not installed")
    endings = ("", ".transforms", ".transforms.v2", ".transforms.v2.functional")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")                                                  # torch.jit.script
        for name in [f"torchvision{ending}" for ending in endings] if importlib.util.find_spec("torchvision") is None else []:
            module = ModuleType(name)
            module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
            patch.setitem(sys.modules, name, module)
            if "." in name:
                setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
        return importlib.import_module(f"bert4torch.{part}")
