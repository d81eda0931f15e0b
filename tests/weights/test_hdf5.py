"""Weights of bert4keras models: every layer under the name of Google's variable, and no way out of the file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.weights.formats import find_weights, read_folder, read_tensors
from fishpaw.weights.hdf5 import UNKNOWN, read_keras
from fishpaw.weights.load import inspect
from fishpaw.weights.translate import recognise

h5py = pytest.importorskip("h5py", reason="extra h5")
HERE = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("make_keras_files", HERE / "make_keras_files.py")
keras = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(keras)

CONFIG = {
    "vocab_size": keras.VOCABULARY, "hidden_size": keras.HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": keras.INNER, "max_position_embeddings": keras.POSITIONS, "type_vocab_size": keras.SEGMENTS,
}  # fmt: skip


def written(path: Path, layers, *, into: str = "") -> Path:
    with h5py.File(path, "w") as file:
        keras.lay_out(file.create_group(into) if into else file, layers)
    return path


def follow_names(tensors) -> None:
    """Every tensor is the one that its name stands for."""
    for name, tensor in tensors.items():
        assert np.array_equal(tensor.numpy(), keras.value(name, *tensor.shape)), name


def test_the_committed_file_is_read_name_by_name():
    tensors = read_keras(HERE / "keras" / "bert.weights")
    follow_names(tensors)
    assert len(tensors) == 5 + 16 + 2
    assert [name for name in tensors if name.startswith(UNKNOWN)] == ["keras/dense_99/kernel", "keras/dense_99/bias"]


@pytest.mark.parametrize("first", [1, 8, 97], ids="dense_{}".format)         # dense_9 before dense_10: an alphabet would mix them up
@pytest.mark.parametrize("options", [{}, {"positions": False}, {"shared": True}], ids=["bert", "roformer", "albert"])
def test_the_order_inside_a_layer_tells_its_weights(tmp_path, first, options):
    tensors = read_keras(written(tmp_path / "x.weights", keras.bert(3, first=first, **options) + keras.heads() + keras.top()))
    follow_names(tensors)
    assert len(tensors) == 4 + options.get("positions", True) + 16 * (1 if options.get("shared") else 3) + 9 + 2


def test_a_wrong_order_is_seen_by_these_checks(tmp_path):
    layers = keras.bert(1)
    at = [name for name, _ in layers].index("Transformer-0-MultiHeadSelfAttention")
    layers[at] = (layers[at][0], layers[at][1][2:] + layers[at][1][:2])
    tensors = read_keras(written(tmp_path / "x.weights", layers))
    with pytest.raises(AssertionError):
        follow_names(tensors)


def test_gamma_and_beta_go_by_name_and_biases_may_be_missing(tmp_path):
    layers = [(name, weights[::-1] if name.endswith("Norm") else [pair for pair in weights if "bias" not in pair[0]])
              for name, weights in keras.bert(2)]  # fmt: skip
    tensors = read_keras(written(tmp_path / "x.weights", layers))
    follow_names(tensors)
    assert "bert/encoder/layer_1/output/LayerNorm/gamma" in tensors and not any(name.endswith("bias") for name in tensors)


def test_a_whole_model_and_a_model_within_a_model(tmp_path):
    plain = read_keras(written(tmp_path / "plain.weights", keras.bert(2) + keras.top()))
    whole = read_keras(written(tmp_path / "whole.h5", keras.bert(2) + keras.top(), into="model_weights"))
    nested = [("model_1", [pair for _, weights in keras.bert(2) for pair in weights]), *keras.top()]
    inner = read_keras(written(tmp_path / "nested.weights", nested))
    assert plain.keys() == whole.keys() == inner.keys()
    follow_names(whole)
    follow_names(inner)


@pytest.mark.parametrize("kind", ["bytes of one length", "strings"])
def test_names_too_long_for_one_attribute(tmp_path, kind):
    path = written(tmp_path / "x.weights", keras.bert(2))
    with h5py.File(path, "a") as file:
        names = file.attrs["layer_names"]
        if kind == "strings":                                     # what h5py 3 makes of a list
            names = [name.decode() for name in names]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:5], names[5:]
    follow_names(read_keras(path))
    assert len(read_keras(path)) == 5 + 32


@pytest.mark.parametrize("kind", ["<f2", "<f8", ">f4", "<i4"])
def test_other_numbers(tmp_path, kind):
    values = np.arange(12).reshape(3, 4).astype(kind)
    path = written(tmp_path / "x.weights", [("Embedding-Token", [("Embedding-Token/embeddings:0", values)])])
    found = read_keras(path)["bert/embeddings/word_embeddings"].numpy()
    assert found.dtype == values.dtype.newbyteorder("=") and np.array_equal(found, values)


# models

@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_a_model_loads_and_reports_what_is_on_top(tmp_path, family):
    written(tmp_path / "best_model.weights", keras.bert(2, positions=family == "bert") + keras.heads() + keras.top())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    model, report = inspect(tmp_path)
    assert report.family == family and report.new == () and report.unused == ("keras/dense_99/kernel", "keras/dense_99/bias")
    state = model.state_dict()
    name = "bert/encoder/layer_1/attention"
    three = [keras.value(f"{name}/self/{part}/kernel", 6, 6).T for part in ("query", "key", "value")]
    assert np.array_equal(state["layers.1.attention.project.weight"].numpy(), np.concatenate(three))
    assert np.array_equal(state["heads.nsp.dense.weight"].numpy(), keras.value("cls/seq_relationship/output_weights", 2, 6))
    logits = model(torch.tensor([[3, 5, 7]]))
    assert torch.isfinite(logits.logits).all()


def test_nezha_can_be_told_from_roformer(tmp_path):
    table = [("Embedding-Relative-Position", [("Embedding-Relative-Position/embeddings:0", np.ones((129, 3), np.float32))])]
    tensors = read_keras(written(tmp_path / "x.weights", keras.bert(1, positions=False) + table))
    assert "keras/Embedding-Relative-Position/embeddings" in tensors
    tensors = read_keras(written(tmp_path / "y.weights", keras.bert(1, positions=False)))
    assert recognise({}, list(tensors))[0].name == "roformer"


def test_a_folder_with_a_model_and_what_was_trained_from_it(tmp_path):
    written(tmp_path / "best_model.weights", keras.bert(1))
    assert find_weights(tmp_path).name == "best_model.weights" and len(read_folder(tmp_path)) == 21
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"2 TensorFlow or Keras checkpoints \(bert_model.ckpt.index, best_model.weights\)"):
        read_folder(tmp_path)
    assert len(read_tensors(tmp_path / "best_model.weights")) == 21


# damage and malice

def layer_of(weights) -> list:
    return [("Embedding-Norm", weights)]


@pytest.mark.parametrize(("layers", "message"), [
    ([("dense_1", [("dense_1/kernel:0", np.ones((2, 2)))])], "none of its layers is one of bert4keras"),
    ([], "none of its layers"),
    (layer_of([(f"Embedding-Norm/dense_{number}/kernel:0", np.ones((2, 2))) for number in range(2)]), "conditional"),
    ([("Transformer-0-FeedForward", [(f"Transformer-0-FeedForward/dense_{number}/kernel:0", np.ones((2, 2))) for number in range(3)])],
     "'Transformer-0-FeedForward' has 3 weights of the kind 'kernel' instead of 2: a gated"),
    (layer_of([("Embedding-Norm/gamma:0", np.array([b"x"]))]), "no array of numbers"),
])  # fmt: skip
def test_other_layers_than_bert4kerass_are_named(tmp_path, layers, message):
    with pytest.raises(CheckpointError, match=f"x.weights: .*{message}"):
        read_keras(written(tmp_path / "x.weights", layers))


def spoil(file, how: str, secret: Path) -> None:
    place, name = file["Embedding-Norm/Embedding-Norm"], "gamma:0"
    before = place[name][()]
    if how in ("group", "external", "soft"):
        target = "Embedding-Norm" if how == "group" else "Embedding-Norm/Embedding-Norm"
        place = file["Embedding-Norm"] if how == "group" else place
        name = "Embedding-Norm" if how == "group" else name
        del place[name]
        place[name] = h5py.SoftLink("/Embedding-Token") if how == "soft" else h5py.ExternalLink(str(secret), f"/{target}")
        return
    if how == "names":
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = [b"Embedding-Norm", b"../../secret"]
        return
    if how == "numbers":
        del file.attrs["layer_names"]
        file.attrs["layer_names"] = np.arange(4)
        return
    del place[name]
    if how == "virtual":
        layout = h5py.VirtualLayout(before.shape, before.dtype)
        layout[:] = h5py.VirtualSource(str(secret), "Embedding-Norm/Embedding-Norm/gamma:0", before.shape)
        place.create_virtual_dataset(name, layout)
    elif how == "raw":
        place.create_dataset(name, before.shape, before.dtype, external=[(str(secret), 0, before.nbytes)])
    elif how == "compressed":
        place.create_dataset(name, data=before, compression="gzip")
    elif how == "bomb":
        place.create_dataset(name, (2**40,), np.float32)
    elif how == "shared":
        place.create_dataset(name, data=np.zeros(10**5, np.float32))
        for number in range(5):
            place[f"gamma_{number}:0"] = place[name]
        file["Embedding-Norm"].attrs["weight_names"] = [f"Embedding-Norm/gamma_{number}:0".encode() for number in range(5)]
    elif how == "type":
        place[name] = np.dtype("f4")
    elif how in ("twice", "twice in parts", "empty"):
        place[name] = np.zeros(0, np.float32)
        names = [b"Embedding-Norm/gamma:0"] * 4
        if how == "empty":                                        # 12,000 names, each of them once, of one array without a number
            names = [f"Embedding-Norm/gamma_{number}:0".encode() for number in range(12_000)]
            for listed in names:
                place[listed.decode().partition("/")[2]] = place[name]
        attributes = file["Embedding-Norm"].attrs
        del attributes["weight_names"]
        for number, part in enumerate((names[:1], names[1:2]) if how == "twice in parts" else np.array_split(np.array(names), 10)):
            attributes[f"weight_names{number}"] = part


@pytest.mark.parametrize(("how", "message"), [
    ("group", "is a link"), ("external", "is a link"), ("soft", "is a link"), ("names", "absent"), ("numbers", "no list"),
    ("virtual", "another file"), ("raw", "another file"), ("compressed", "compressed"), ("bomb", "more than the file's"),
    ("shared", "more than the file's"), ("type", "no array"), ("gone", "absent"),
    ("twice", "lists 'Embedding-Norm/gamma:0' twice"), ("twice in parts", "lists 'Embedding-Norm/gamma:0' twice"),
    ("empty", "more than 10,000"),
])  # fmt: skip
def test_nothing_outside_of_the_file_is_opened(tmp_path, how, message):
    secret = written(tmp_path / "secret.h5", keras.bert(1))
    path = written(tmp_path / "x.weights", keras.bert(1))
    with h5py.File(path, "a") as file:
        spoil(file, how, secret)
    with pytest.raises(CheckpointError, match=f"x.weights: .*{message}"):
        read_keras(path)


def test_weights_of_one_name_in_layers_of_their_own_are_numbered_and_a_crowd_of_them_refused(tmp_path):
    def crowd(count):
        return written(tmp_path / f"{count}.weights",
                       [*keras.bert(1), *((f"top_{number}", [("w/kernel:0", np.ones((1, number)))]) for number in range(count))])

    tensors = read_keras(crowd(7))
    assert [tensors[f"keras/w/kernel{end}"].shape[1] for end in ("", *(f"_{number}" for number in range(1, 7)))] == list(range(7))
    with pytest.raises(CheckpointError, match="more than 100 of its layers have a weight 'w/kernel'"):
        read_keras(crowd(101))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "empty"), (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged"), (b"PK\3\4" + bytes(99), "no HDF5"), (b"<html>", "web page"),
])  # fmt: skip
def test_what_is_no_file_of_keras(tmp_path, content, message):
    (tmp_path / "x.weights").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "x.weights")


def test_keras_3_has_another_format(tmp_path):
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file.create_group("layers/dense/vars")["0"] = np.ones(3)
    with pytest.raises(CheckpointError, match="has no list 'layer_names'"):
        read_tensors(tmp_path / "x.weights.h5")


def test_damaged_bytes_are_one_clear_error_or_harmless(tmp_path):
    whole = (HERE / "keras" / "bert.weights").read_bytes()
    path, random, refused = tmp_path / "x.weights", np.random.default_rng(20201120), 0
    for _ in range(60):
        spoiled = bytearray(whole[: random.integers(1, len(whole))] if random.random() < 0.2 else whole)
        for at in random.integers(0, len(spoiled), 20):
            spoiled[at] = random.integers(256)
        path.write_bytes(bytes(spoiled))
        try:
            read_keras(path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in error.what and "\n" not in error.what
    assert refused > 15


def test_without_h5py(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r'pip install "fishpaw\[h5\]"'):
        read_tensors(tmp_path / "x.weights")
