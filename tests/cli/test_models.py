"""convert and what it writes; export onnx: tests/weights/test_onnx.py."""

from __future__ import annotations

import pytest


def test_convert(fishpaw_, models, files, refused):
    done = fishpaw_("convert", models / "bert", files.folder / "new", "--json")
    assert done.objects[0]["family"] == "bert" and done.objects[0]["model"] == str(files.folder / "new")
    question = ["fill", "今[MASK]", "--model"]
    assert fishpaw_(*question, files.folder / "new") == fishpaw_(*question, models / "bert")
    for name in ("vocab.txt", "tokenizer.json", "manifest.json"):
        (files.folder / "new" / name).unlink(missing_ok=True)
    bare = fishpaw_("convert", files.folder / "new", files.folder / "bare")
    assert bare.code == 0 and "without a tokenizer" in bare.err
    refused(fishpaw_("convert", models / "bert", files.folder / "reviews.tsv"), "is a file, not a folder")
    refused(fishpaw_("convert", files.folder / "nowhere", files.folder / "x"), "no such file or folder")


def test_convert_of_a_folder_that_was_changed(fishpaw_, models, files, refused):
    fishpaw_("convert", models / "bert", files.folder / "new")
    with open(files.folder / "new" / "config.json", "ab") as config:
        config.write(b"\n")
    refused(fishpaw_("convert", files.folder / "new", files.folder / "out"), "config.json: .* bytes, but manifest.json says")
    assert fishpaw_("convert", "--no-verify", files.folder / "new", files.folder / "out").code == 0
    assert fishpaw_("convert", files.folder / "out", files.folder / "again").code == 0


def test_convert_to_tensorflow_and_back(fishpaw_, refused, models, files):
    made, back = files.folder / "tensorflow", files.folder / "back"
    done = fishpaw_("convert", models / "bert", made, "--to", "tensorflow")
    assert done.code == 0 and not done.err
    assert {"bert_model.ckpt.index", "bert_config.json", "vocab.txt", "manifest.json"} <= {path.name for path in made.iterdir()}
    question = ["fill", "今[MASK]", "--model"]
    assert fishpaw_(*question, made) == fishpaw_(*question, models / "bert")
    assert fishpaw_("convert", made, back).code == 0
    assert (back / "model.safetensors").read_bytes() == (models / "bert" / "model.safetensors").read_bytes()
    refused(fishpaw_("convert", models / "gpt2", files.folder / "x", "--to", "tensorflow"), "no layout in TensorFlow|Published so")
    wrong = fishpaw_("convert", models / "bert", files.folder / "x", "--to", "tf")
    assert wrong.code == 2 and "--to" in wrong.err and not (files.folder / "x").exists()


def test_convert_names_what_it_leaves_out_and_turns_switches(fishpaw_, models, files):
    done = fishpaw_("convert", models / "t5", files.folder / "new", "--family", "t5_encoder", "--json")
    assert done.code == 0 and done.objects[0]["unused"] == 0 and not done.err            # a decoder beside the encoder asked for is no loss
    done = fishpaw_("convert", models / "bert", files.folder / "bare", "--change", "heads=[]", "--json")
    assert done.code == 0 and done.objects[0]["unused"] >= 2
    (line,) = done.err.splitlines()
    assert f"{done.objects[0]['unused']} tensors have no place" in line and "cls.predictions" in line


def test_export_of_an_encoder_decoder_is_refused_before_it_is_traced(fishpaw_, models, files, refused):
    pytest.importorskip("onnxscript")
    refused(fishpaw_("export", "onnx", models / "t5", files.folder / "graph"), "no single graph")
