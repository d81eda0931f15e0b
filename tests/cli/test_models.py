"""convert and what it writes; export onnx: tests/weights/test_onnx.py."""

from __future__ import annotations


def test_convert(fishpaw_, models, files, refused):
    done = fishpaw_("convert", models / "bert", files.folder / "new", "--json")
    assert done.objects[0]["family"] == "bert" and done.objects[0]["model"] == str(files.folder / "new")
    question = ["fill", "今[MASK]", "--model"]
    assert fishpaw_(*question, files.folder / "new") == fishpaw_(*question, models / "bert")
    (files.folder / "new" / "vocab.txt").unlink()
    (files.folder / "new" / "manifest.json").unlink()
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
