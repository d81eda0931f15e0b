"""An exported graph gives what the model gives, for sizes that it was not traced with; what strays is not kept."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.cli import main
from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError, FishpawError
from fishpaw.files import verify_manifest
from fishpaw.model.transformer import Transformer
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights import onnx as subject
from fishpaw.weights.load import load_model
from fishpaw.weights.onnx import Exported, export, export_int8
from fishpaw.weights.save import save

SIZES = {"vocab_size": 23, "hidden_size": 12, "layers": 2, "attention_heads": 3, "intermediate_size": 17, "max_positions": 41}
LABELS = {"name": "classifier", "labels": ["负", "正", "中"]}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {"heads": ("pooler", "nsp", "mlm", LABELS)},
    "roformer": {"family": "roformer", "position": "rotary", "key_value_heads": 1, "mask": {"name": "full", "window": 3},
                 "heads": ("mlm",)},
    "gpt2": {"layers": 1, "family": "gpt2", "norm_at": "pre", "embedding_norm": False, "segments": 0, "mask": "causal",
             "activation": "squareplus", "heads": ({"name": "pooler", "at": "last"}, "lm")},
    "unilm": {"mask": "unilm", "residual_scores": True, "position": "sinusoidal", "norm": "rms", "heads": ()},
    "frozen table": {"position": "nezha", "heads": ("rtd",), "activation": "swiglu"},
    "borders of buckets": {"position": "buckets", "layers": 1},
}  # fmt: skip
OUTPUTS = {
    "bert": {"last_hidden_state": "hidden", "logits": "classes", "prediction_logits": "logits", "pooler_output": "pooled",
             "seq_relationship_logits": "nsp"},
    "roformer": {"last_hidden_state": "hidden", "logits": "logits"},
    "gpt2": {"last_hidden_state": "hidden", "logits": "logits", "pooler_output": "pooled"},
    "unilm": {"last_hidden_state": "hidden"},
    "frozen table": {"last_hidden_state": "hidden", "replaced_logits": "replaced"},
    "borders of buckets": {"last_hidden_state": "hidden"},
}  # fmt: skip
SHAPES = [(1, 1), (1, 2), (2, 7), (5, 19), (3, 41)]


def make(name: str) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**SIZES | MODELS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)                               # near 0 attention is uniform and hides faults
    return model


def inputs(rows: int, length: int) -> dict[str, torch.Tensor]:
    """The first row padded on the right, the last on the left, if there is room."""
    ids = torch.randint(23, (rows, length))
    mask, segments = torch.ones_like(ids), torch.zeros_like(ids)
    mask[0, length - length // 3 :] = 0
    if rows > 1:
        mask[-1, : length // 2] = 0
    segments[:, length // 2 :] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def run(path: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {one.name: given[one.name].numpy() for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(names, taken), strict=True)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """exported(name) -> the model and its graph's folder and report, made once."""
    pytest.importorskip("onnxruntime")
    made: dict[str, Any] = {}

    def get(name: str):
        if name not in made:
            model = make(name)
            folder = tmp_path_factory.mktemp(name) / "out"
            made[name] = model, folder, export(model, folder)
        return made[name]

    return get


# Equal

@pytest.mark.parity
@pytest.mark.parametrize("name", [name if name in ("roformer", "unilm", "gpt2") else pytest.param(name, marks=pytest.mark.slow)
                                  for name in MODELS])  # fmt: skip
def test_the_graph_gives_what_the_model_gives(exported, name):
    model, folder, report = exported(name)
    assert model.training                                            # left as it was
    assert report.file == folder / "model.onnx" and report.size == report.file.stat().st_size
    assert report.difference < 1e-5 and report.cosine is None
    model = load_state(model).eval()
    for rows, length in SHAPES:
        given = inputs(rows, length)
        keep = given["attention_mask"].bool()
        segments = given["token_type_ids"] if "token_type_ids" in report.inputs else None
        with torch.no_grad():
            wanted = model(given["input_ids"], padding=keep, segments=segments)
        found = run(report.file, given)
        assert tuple(found) == report.outputs and {*found} == {*OUTPUTS[name]}
        for output, field in OUTPUTS[name].items():
            ours, theirs = getattr(wanted, field), found[output]
            assert ours.shape == theirs.shape
            if ours.dim() == 3:
                ours, theirs = ours[keep], theirs[keep]
            # Two ways through fp32 sums: 1e-5 of the largest value.
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * float(ours.abs().max().clamp_min(1)))


def load_state(model: Transformer) -> Transformer:
    """A copy, so that a test may put it into evaluation mode."""
    copy = Transformer(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parity
def test_inputs_are_those_that_the_model_reads(exported):
    assert exported("bert")[2].inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert exported("gpt2")[2].inputs == ("input_ids", "attention_mask")


@pytest.mark.parity
def test_the_graph_is_plain_onnx_and_tells_nothing_of_this_machine(exported):
    onnx = pytest.importorskip("onnx")
    path = exported("bert")[2].file
    graph = onnx.load_model(path)
    onnx.checker.check_model(graph, full_check=True)
    assert {(one.domain, one.version) for one in graph.opset_import} == {("", 20)}
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert not kinds["IsNaN"] and kinds["Softmax"] == 2 and kinds["Gelu"] == 3      # two layers and the head
    sizes = [[each.dim_param or each.dim_value for each in one.type.tensor_type.shape.dim] for one in graph.graph.output]
    assert sizes[:2] == [["batch", "length", 12], ["batch", 3]]
    words = (b"transformer.py", b"site-packages", str(Path(subject.__file__).parent).encode())
    assert not [word for word in words if word in path.read_bytes()]


@pytest.mark.parity
def test_a_text_beyond_the_positions_is_an_error_of_the_runtime(exported):
    given = inputs(1, 42)
    given["attention_mask"][:] = 1
    with pytest.raises(Exception, match="out of"):
        run(exported("bert")[2].file, given)


@pytest.mark.parity
def test_int8_is_near_and_smaller(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=211, hidden_size=96, layers=2, attention_heads=3, intermediate_size=193, heads=("mlm",))
    model = Transformer(config).to(torch.bfloat16).eval()            # of any type: the graph is of its values in fp32
    report = export_int8(model, tmp_path / "out", WordPiece(characters(["鱼与熊掌"], least=1)))
    assert [path.name for path in sorted((tmp_path / "out").iterdir())][:3] == ["config.json", "manifest.json", "model.int8.onnx"]
    assert (tmp_path / "out" / "vocab.txt").is_file() and verify_manifest(tmp_path / "out")
    assert 1e-4 < report.difference < 0.2 and report.cosine > 0.999 and report.least_cosine > 0.995
    parameters = sum(one.numel() for one in model.parameters())
    positions = 4 * model.positions[0].table.weight.numel()
    assert report.size < 1.3 * parameters + positions                # bytes: positions in fp32, the tied table once, in int8
    given = {name: value % 211 for name, value in inputs(2, 29).items()}
    keep = given["attention_mask"].bool()
    model = model.float()
    with torch.no_grad():
        wanted = model(given["input_ids"], padding=keep, segments=given["token_type_ids"])
    found = run(report.file, given)
    for ours, theirs in ((wanted.hidden, found["last_hidden_state"]), (wanted.logits, found["logits"])):
        assert torch.nn.functional.cosine_similarity(ours[keep], theirs[keep]).min() > 0.995


@pytest.mark.parity
def test_weights_too_large_for_one_file_stand_beside_it(tmp_path, monkeypatch, exported):
    onnx = pytest.importorskip("onnx")
    model, folder, _ = exported("roformer")
    monkeypatch.setattr(subject, "_LARGEST", 1000)
    monkeypatch.setattr(subject, "_graph", lambda *_: onnx.load_model(folder / "model.onnx"))
    report = export(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 1000 and report.size > report.file.stat().st_size
    assert "model.onnx.data" in json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["files"]
    export_int8(model, tmp_path / "out")                             # an older export is replaced
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.int8.onnx" in names and not {"model.onnx", "model.onnx.data"} & names


# Caught

@pytest.mark.parity
def test_a_wrong_weight_is_caught_and_nothing_is_left(tmp_path, monkeypatch, exported):
    onnx = pytest.importorskip("onnx")
    model, folder, _ = exported("roformer")

    def planted(*_: Any) -> Any:
        graph = onnx.load_model(folder / "model.onnx")
        weight = next(one for one in graph.graph.initializer if one.name.endswith("layers.1.attention.output.weight"))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3, 5] += 0.01
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return graph

    monkeypatch.setattr(subject, "_graph", planted)
    with pytest.raises(FishpawError, match=r"last_hidden_state differs from the model's by .*e-0.*1e-04 is allowed"):
        export(model, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parity
def test_int8_that_strays_is_caught_and_the_older_export_stays(tmp_path, monkeypatch, exported):
    onnx = pytest.importorskip("onnx")
    model, folder, _ = exported("roformer")
    monkeypatch.setattr(subject, "_graph", lambda *_: onnx.load_model(folder / "model.onnx"))
    export(model, tmp_path / "out")
    before = verify_manifest(tmp_path / "out")

    def spoilt(source: Path, target: Path) -> None:
        graph = onnx.load_model(source)
        for one in graph.graph.initializer:
            if one.name.endswith("up.weight"):
                one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one)[::-1].copy(), one.name))
        onnx.save_model(graph, target)

    monkeypatch.setattr(subject, "_quantize", spoilt)
    with pytest.raises(FishpawError, match=r"cosine of 0\.\d+ with those in fp32.*Export it without int8"):
        export_int8(model, tmp_path / "out")
    assert verify_manifest(tmp_path / "out") == before


@pytest.mark.parity
def test_a_graph_that_cannot_run_is_said_in_one_line(tmp_path, monkeypatch, exported):
    onnx = pytest.importorskip("onnx")
    model, folder, _ = exported("roformer")
    graph = onnx.load_model(folder / "model.onnx")
    graph.graph.node[5].op_type = "NoSuchOperator"
    monkeypatch.setattr(subject, "_graph", lambda *_: graph)
    with pytest.raises(FishpawError, match="ONNX Runtime can't run the graph: .*NoSuchOperator"):
        export(model, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


# Refused

@pytest.mark.parity
def test_parts_without_words_in_onnx_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = Transformer(ModelConfig(**SIZES | {"layers": 1})).eval()
    model.layers[0].feed_forward.activation = torch.special.airy_ai
    monkeypatch.setattr(subject, "_twin", lambda given: given)       # a twin is made from the config, which can't name this
    with pytest.raises(ConfigError, match="can't be written as an ONNX graph: No ONNX function found for .*airy_ai"):
        export(model, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_model_of_nan_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_PACKAGES", ())
    model = Transformer(ModelConfig(**SIZES))
    with torch.no_grad():
        model.layers[1].attention.output.weight[2, 3] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        export(model, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_part_of_the_users_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_PACKAGES", ())
    with pytest.raises(ConfigError, match="a part of your own"):
        export(Transformer(ModelConfig(**SIZES, activation=torch.sin)), tmp_path / "out")


def test_a_decoder_with_an_encoder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_PACKAGES", ())
    encoder = ModelConfig(**SIZES)
    with pytest.raises(ConfigError, match="reads an encoder"):
        export(Transformer(ModelConfig(**SIZES, mask="causal", encoder=encoder)), tmp_path / "out")


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_PACKAGES", ("json", "onnx_of_tomorrow"))
    with pytest.raises(ConfigError, match=r'needs onnx_of_tomorrow: not installed. Run: pip install "fishpaw\[onnx\]"'):
        export(Transformer(ModelConfig(**SIZES)), tmp_path / "out")


def test_a_saved_model_or_anothers_graph_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_PACKAGES", ())
    model = Transformer(ModelConfig(**SIZES))
    save(model, tmp_path / "model")
    with pytest.raises(FishpawError, match="holds a saved model"):
        export(model, tmp_path / "model")
    load_model(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.onnx").write_bytes(b"mine")
    with pytest.raises(FishpawError, match="did not write"):
        export(model, tmp_path / "other")
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FishpawError, match="is a file"):
        export(model, tmp_path / "file")


# The program

@pytest.mark.parity
def test_the_program_exports_and_says_how_near(tmp_path, monkeypatch, capfd):
    pytest.importorskip("onnxruntime")
    handlers, disabled = logging.root.handlers[:], logging.root.manager.disable
    torch.manual_seed(0)
    vocab = characters(["今天气很好"], least=1)
    shape = {"hidden_size": 12, "layers": 1, "attention_heads": 2, "intermediate_size": 20, "max_positions": 37}
    save(Transformer(ModelConfig(vocab_size=len(vocab), heads=("pooler", "mlm"), **shape)), tmp_path / "bert", WordPiece(vocab))

    def program(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fishpaw", "export", "onnx", *map(str, words)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capfd.readouterr()

    out = tmp_path / "out"
    code, said, heard = program(tmp_path / "bert", out, "--int8", "--heads", "pooler")
    assert code == 0, heard
    assert "outputs      last_hidden_state, pooler_output\n" in said and re.search(r"difference   \d\.\de-0[1-4]\n", said)
    assert re.search(r"cosine       (0.99|1.00)\d\d\n", said)
    assert heard.splitlines() == ["fishpaw: tracing the model; half a minute for a BERT-base"]           # no chatter of the exporter
    assert {path.name for path in out.iterdir()} >= {"model.int8.onnx", "vocab.txt", "config.json", "manifest.json"}
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)
    with pytest.raises(CheckpointError, match="holds no weights|safetensors"):       # a graph is not a model to load
        load_model(out)
    made = Exported(out / "model.onnx", 7, ("input_ids",), ("logits",), 1e-7)
    with monkeypatch.context() as patch:
        patch.setattr(subject, "export", lambda *_: made)
        code, said, _ = program(tmp_path / "bert", out, "--json")
    assert json.loads(said) == {"file": str(made.file), "bytes": 7, "inputs": ["input_ids"], "outputs": ["logits"], "difference": 1e-7,
                                "cosine": None, "least_cosine": None}  # fmt: skip
    code, _, heard = program(tmp_path / "bert", tmp_path / "bert")
    assert code == 2 and "holds a saved model" in heard
    code, _, heard = program(tmp_path / "bert", out, "--heads", "poler")
    assert code == 2 and "no head 'poler'. Did you mean 'pooler'?" in heard


def test_a_stream_of_positions_is_refused_before_anything_is_written(tmp_path):
    model = Transformer(ModelConfig(**SIZES, stream="positions", mask={"name": "full", "exclude_self": True}))
    with pytest.raises(ConfigError, match="T-TA"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
