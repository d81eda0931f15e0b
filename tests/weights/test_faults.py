"""Everything that may be wrong with a checkpoint is one FishpawError that names the file or the field and the next step.

Which test shows which accident, for loading and saving:
 1  a pickle that runs code          test_formats: a_bomb_is_named_and_never_goes_off; here: a_bomb_in_a_folder
 2  .bin under an old torch          test_formats: an_old_torch_reads_no_pickles
 3  truncated at every 1 %           test_formats: truncation_at_every_hundredth; test_tensorflow: truncated_data_is_named; here: truncated
 4  one flipped byte                 here: a_thousand_flipped_bytes, a_flipped_byte_loads_only_unverified;
                                     test_tensorflow: every_flipped_byte_of_the_data_names_a_tensor
 5  empty, folder, shard missing …   test_formats: a_shard_missing_extra_empty…, empty_missing_and_foreign_files; here: empty_and_misplaced
 6  header of 2^60 bytes             test_formats: hostile_headers
 7  shapes and offsets that lie      test_formats: hostile_headers; test_tensorflow: lies_are_errors_without_allocation
 8  other shapes                     here: other_shapes_are_a_short_table
 9  missing and unexpected tensors   here: the_backbone_is_strict; test_load: heads…
10  NaN in the weights               here: nan_is_a_warning_with_the_tensors_name
11  unsupported TensorFlow bundles   test_tensorflow: unsupported_bundles_say_how_to_convert, strings_are_refused_with_a_way_out
12  a wrong config.json              here: configurations_that_cannot_be, mutated_configurations
13  a config.json that names code    here: auto_map_is_never_run, code_in_our_own_fields
14  files outside the folder         test_formats: shards_outside_the_folder_are_refused; here: shards_and_links_that_lead_out
                                     test_places: links of bundles, pipes
15  archives                         here: archives_are_not_unpacked
16  a full disk while saving         test_files: a_full_disk_leaves_the_old_folder; here: a_full_disk_while_a_model_is_saved
17  a kill while saving              test_files: a_kill_at_any_step_leaves_old_or_new; here: a_save_that_died_is_settled_by_the_next_load
18  two writers                      test_files: a_second_process_waits_or_names_the_first; here: a_second_writer_names_the_first
19  not writable, no home            test_files: a_read_only_folder_is_explained; test_hub: unwritable_cache_names_hf_home;
                                     here: not_writable
20  no network                       test_hub: silence_ends_within_the_timeout, no_hub_at_all_names_the_ways_out…;
                                     here: offline_through_load
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fishpaw
from fishpaw import files
from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError, FishpawError, HubError
from fishpaw.model.transformer import Transformer
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import inspect, load, load_model
from fishpaw.weights.save import save

CONFIG = ModelConfig(23, 12, 2, 3, 17, max_positions=13, heads=("pooler", "nsp", "mlm"))
BUNDLES = Path(__file__).resolve().parent / "bundles"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model") / "saved"
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"零一二三四五六七八九十百千万亿兆京垓")
    save(Transformer(CONFIG), folder, WordPiece(Vocab(tokens)))
    load_model(folder)                                             # the first in a process takes a second longer: torch imports for meta
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil, without its manifest."""
    shutil.copytree(saved, tmp_path / "spoiled")
    (tmp_path / "spoiled" / "manifest.json").unlink()
    return tmp_path / "spoiled"


def values(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def rewrite(folder: Path, value: object) -> None:
    content = value if isinstance(value, bytes) else json.dumps(value).encode("utf-8")
    (folder / "config.json").write_bytes(content)


def one_sentence(error: FishpawError) -> bool:
    first, *table = error.what.splitlines()
    return len(first) < 900 and len(table) <= 20 and len(error.fix) > 4 and "Traceback" not in str(error)


# 1, 3, 4, 5

class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo > {self.sentinel}",)


def test_a_bomb_in_a_folder(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.weight": Bomb(tmp_path / "sentinel")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*system"):
        load_model(folder)
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt", "manifest.json"])
def test_a_truncated_file_is_named(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path / "m")
    content = (saved / name).read_bytes()
    for part in range(0, 100, 9):
        (tmp_path / "m" / name).write_bytes(content[: len(content) * part // 100])
        with pytest.raises(CheckpointError, match=name):
            load_model(tmp_path / "m")


def caught(folder: Path, count: int) -> int:
    """How many of so many flipped bytes, anywhere in the folder, make loading an error that names the file."""
    choose = random.Random(0)
    targets = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in targets]
    found = 0
    for number in range(count):
        path = targets[number % len(targets)] if number % 2 else choose.choices(targets, sizes)[0]
        at, flip = choose.randrange(path.stat().st_size), choose.randrange(1, 256)
        flip_byte(path, at, flip)
        try:
            load_model(folder)
        except CheckpointError as error:
            found += path.name in error.what
        flip_byte(path, at, flip)
    return found


def flip_byte(path: Path, at: int, flip: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ flip]))


def test_a_thousand_flipped_bytes_are_a_thousand_errors_that_name_the_file(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    assert len(list((tmp_path / "m").iterdir())) >= 4              # config, weights, vocabulary, manifest
    assert caught(tmp_path / "m", 1_000) == 1_000
    load_model(tmp_path / "m")


def test_without_the_manifest_flips_go_unseen(saved, tmp_path, monkeypatch):
    """The planted fault: a loader that forgets to verify."""
    shutil.copytree(saved, tmp_path / "m")
    monkeypatch.setattr("fishpaw.weights.load.verify_manifest", lambda folder, also: "")
    monkeypatch.setattr("fishpaw.weights.load._read_values", lambda folder: (folder / "config.json", values(saved)))
    assert caught(tmp_path / "m", 60) < 30


def test_a_flipped_byte_loads_only_unverified(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(path)                                           # the file alone is verified, too
    load_model(tmp_path / "m", verify=False)


def test_empty_and_misplaced_files(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is empty"):
        load_model(folder)
    weights.unlink()
    weights.mkdir()
    with pytest.raises(CheckpointError, match="folder"):
        load_model(folder)
    weights.rmdir()
    with pytest.raises(CheckpointError, match="holds none of"):
        load_model(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_model(folder)


# 8, 9, 10

@pytest.mark.parametrize(("field", "value", "said"), [
    ("vocab_size", 29, r"word_embeddings.weight \[23, 12\], but the config asks for \[29, 12\]"),
    ("intermediate_size", 19, r"intermediate.dense.weight \[17, 12\]"),
    ("max_position_embeddings", 14, r"position_embeddings.weight \[13, 12\]"),
    ("hidden_size", 15, r"… and \d+ more"),
])  # fmt: skip
def test_other_shapes_are_a_short_table(folder, field, value, said):
    rewrite(folder, values(folder) | {field: value})
    with pytest.raises(CheckpointError, match=said) as caught_error:
        load_model(folder)
    table = [line for line in str(caught_error.value).splitlines() if line.startswith("  ")]
    assert 1 <= len(table) <= 20 and (len(table) == 20) == (field == "hidden_size")


def test_pieces_that_do_not_fit_together(folder):
    tensors = dict(read_folder(folder))
    tensors["bert.encoder.layer.0.attention.self.key.weight"] = torch.zeros(12, 7)
    tensors["bert.encoder.layer.1.attention.self.key.bias"] = torch.tensor(1.0)
    write_safetensors(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"key.weight \[12, 7\](.|\n)*key.bias \[\]"):
        load_model(folder)


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.pop("bert.encoder.layer.1.attention.self.key.bias"), "lacks 1 tensors: bert.encoder.layer.1.attention.self.key.bias"),
    (lambda t: t.pop("bert.embeddings.position_embeddings.weight"), "lacks 1 .*position_embeddings"),
    (lambda t: t.update({"bert.encoder.layer.2.output.dense.bias": torch.zeros(12)}), "no place for: bert.encoder.layer.2.output"),
    (lambda t: t.update({"bert.encoder.layer.0.adapter.weight": torch.zeros(12)}), "no place for: bert.encoder.layer.0.adapter.weight"),
])  # fmt: skip
def test_the_backbone_is_strict(folder, change, said):
    tensors = dict(read_folder(folder))
    change(tensors)
    write_safetensors(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64])
def test_quantised_weights_are_refused(folder, dtype):
    tensors = dict(read_folder(folder))
    tensors["bert.pooler.dense.weight"] = torch.ones(12, 12, dtype=dtype)
    write_safetensors(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"bert.pooler.dense.weight' holds {dtype}"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_a_warning_with_the_tensors_name(folder, value):
    tensors = {name: tensor.clone() for name, tensor in read_folder(folder).items()}
    tensors["bert.encoder.layer.1.output.dense.bias"][3] = value
    write_safetensors(tensors, folder / "model.safetensors")
    with pytest.warns(UserWarning, match=r"NaN or infinite values in layers\.1\.feed_forward\.down\.bias") as seen:
        load(folder)
    assert seen[0].filename == __file__
    assert inspect(folder)[1].nonfinite == ("layers.1.feed_forward.down.bias",)


# 12

def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"encoder": value}
    return value


@pytest.mark.parametrize(("change", "said"), [
    (b"", "line 1: invalid JSON"), (b"{", "invalid JSON"), (b"[]", "not a JSON object"), (b"\xff\xfe{}", "not UTF-8"),
    (b'{"model_type": "bert", "model_type": "gpt2"}', "'model_type' stands twice"), (b"[" * 10**5, "nested too deeply"),
    (b'{"vocab_size": ' + b"1" * 5_000 + b"}", "digits"), (b" " * (2**22 + 1), "4,194,305 bytes"),
    ({"model_type": "bart"}, "model_type is 'bart'"), ({"model_type": ["bert"]}, "model_type is"), ({"model_type": {}}, "model_type is"),
    ({"num_attention_heads": 5}, "hidden_size 12 is not a multiple of attention_heads 5"),
    ({"num_hidden_layers": 10**9}, "layers is 1000000000"), ({"num_hidden_layers": 9_000}, "layers is 9000"),
    ({"hidden_size": 3 * 2**14}, "asks for about"), ({"vocab_size": 2**31 - 1}, "asks for"),
    ({"max_position_embeddings": 2**31 - 1}, "asks for about 25,769,8"),
    ({"fishpaw": {"embedding_size": 2**31 - 1, "max_positions": 2**31 - 1, "vocab_size": 1, "segments": 0}}, "max_positions is 2147483647"),
    ({"hidden_size": "12"}, "hidden_size is '12'"), ({"hidden_size": 12.0}, "hidden_size is 12.0"),
    ({"vocab_size": -1}, "vocab_size is -1"), ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"), ({"hidden_dropout_prob": float("nan")}, "dropout is nan"),
    ({"hidden_act": "gleu"}, "Did you mean 'gelu'"), ({"hidden_act": [1]}, "activation is"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ({"is_decoder": "no"}, "is_decoder is 'no'"), ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"tie_word_embeddings": 1}, "tie_embeddings is 1"), ({"fishpaw": []}, '"fishpaw" is a list'),
    ({"fishpaw": "x"}, '"fishpaw" is a str'), ({"fishpaw": {"masks": 1}}, "Unknown field 'masks'"),
    ({"fishpaw": {"heads": ["pooler", "pooler"]}}, "twice"), ({"fishpaw": {"heads": 3}}, "heads is 3"),
    ({"fishpaw": {"mask": {}}}, "mask is"), ({"fishpaw": nested(300)}, "lacks|encoders|nested"),
    ({"model_type": "fishpaw", "fishpaw": {}}, "lacks vocab_size"),
    ({"fishpaw": {"position": {"name": "learned", "config": 1}}}, "can't be built"),
    ({"fishpaw": {"position": "rotry"}}, "there is no 'rotry'"),
])  # fmt: skip
def test_configurations_that_cannot_be(folder, change, said):
    rewrite(folder, change if isinstance(change, bytes) else values(folder) | change)
    begin = time.process_time()
    with pytest.raises(ConfigError, match=said) as error:
        load_model(folder)
    assert "config.json" in error.value.what or "model.safetensors" in error.value.what
    assert one_sentence(error.value) and time.process_time() - begin < 1


def test_encoders_within_encoders(folder, monkeypatch):
    """Newer Pythons parse deeper than they recurse."""
    monkeypatch.setattr("fishpaw.weights.load._read_values", lambda where: (where / "config.json", {"fishpaw": nested(3_000)}))
    with pytest.raises(ConfigError, match=r"config\.json: encoders within encoders"):
        load_model(folder)


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 12, 10**9, 2**31, 10**30, -(10**30), 1e308, 1e-320, float("nan"), float("inf"), 0.5, "", "bert",
    "gpt2", "learned", "a:b", "鱼" * 999, [], [1], ["mlm"], [[]], {}, {"name": "rotary"}, {"name": 1}, {"name": "layer", "eps": "x"},
    {"0": "a"}, nested(40),
)  # fmt: skip


def mutated(source: dict[str, Any], choose: random.Random) -> bytes:
    value = copy.deepcopy(source)
    for _ in range(choose.choice((1, 1, 2, 4))):
        inner = value.get("fishpaw")
        place = inner if isinstance(inner, dict) and choose.random() < 0.4 else value
        keys = sorted(place) or ["mask"]
        action = choose.randrange(5)
        if action == 0:
            place.pop(choose.choice(keys), None)
        elif action == 1:
            known = (*CONFIG.to_dict(), "auto_map", "origin", "architectures", "id2label", "num_labels", "problem_type", "n_embd")
            place[choose.choice(known)] = copy.deepcopy(choose.choice(ODD))
        else:
            place[choose.choice(keys)] = copy.deepcopy(choose.choice(ODD))
    content = json.dumps(value)
    if choose.random() < 0.1:
        key = choose.choice(sorted(value) or ["a"])
        content = content[:-1] + f', "{key}": 1}}'
    return content.encode("utf-8")


@pytest.mark.parametrize("kind", ["family", "own"])
def test_mutated_configurations_load_or_raise_our_errors(kind, folder):
    if kind == "own":
        rewrite(folder, {"model_type": "fishpaw", "fishpaw": CONFIG.change({"position": "sinusoidal"}).to_dict()})
        tensors = Transformer(CONFIG.change({"position": "sinusoidal"})).state_dict()
        write_safetensors(tensors, folder / "model.safetensors")
    source, choose = values(folder), random.Random(len(kind))
    ids = torch.tensor([[2, 3, 5]])
    loaded = refused = 0
    for _ in range(300):
        rewrite(folder, content := mutated(source, choose))
        begin = time.process_time()
        try:
            model = inspect(folder)[0]
            loaded += 1
            if isinstance(model.config.norm, str) or not isinstance(dict(model.config.norm).get("eps", 1), str):
                model(ids)
        except FishpawError as error:
            refused += 1
            assert one_sentence(error), content
        assert time.process_time() - begin < 1, content
    assert loaded > 20 and refused > 100


# 13, 14, 15

def test_auto_map_is_never_run(folder, tmp_path, caplog):
    rewrite(folder, values(folder) | {"auto_map": {"AutoModel": "evil.Model"}, "custom_pipelines": {}, "trust_remote_code": True})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')", encoding="utf-8")
    load_model(folder)
    assert "auto_map" in caplog.text and "never run" in caplog.text
    assert not (tmp_path / "sentinel").exists() and "evil" not in sys.modules


@pytest.mark.parametrize("field", ["position", "attention", "mask", "norm", "activation", "heads"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_code_in_our_own_fields_is_refused(folder, field, wrapped, whole, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("it was called"))
    spec: Any = {"name": "subprocess:Popen"} if wrapped else "subprocess:Popen"
    own = {field: [spec] if field == "heads" else spec}
    if whole:
        rewrite(folder, {"model_type": "fishpaw", "fishpaw": CONFIG.to_dict() | own})
    else:
        rewrite(folder, values(folder) | {"fishpaw": own})
    with pytest.raises(ConfigError, match=rf"config\.json: {field} (names code|is)"):
        load_model(folder)


def test_code_in_an_inner_encoder_is_refused(folder):
    rewrite(folder, {"model_type": "fishpaw", "fishpaw": CONFIG.to_dict() | {"encoder": CONFIG.to_dict() | {"mask": "os:system"}}})
    with pytest.raises(ConfigError, match="mask names code: 'os:system'"):
        load_model(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_that_lead_out_are_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match="leaves the folder"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_shards_that_lead_out_are_refused(folder, name):
    shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        load_model(folder)


def test_archives_are_not_unpacked(folder, tmp_path):
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.add(folder / "config.json", "../../evil.json")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as packed:
        packed.write(folder / "config.json", "../evil.json")
    for name in ("model.tar", "model.zip"):
        with pytest.raises(CheckpointError, match=name):
            load_model(tmp_path / name)
    shutil.copy(tmp_path / "model.zip", folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model(folder)
    assert not list(tmp_path.parent.glob("**/evil.json"))


# 16 to 20

@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_a_full_disk_while_a_model_is_saved(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    code = (
        "import resource, sys\nfrom fishpaw.errors import FishpawError\nfrom fishpaw.weights.load import load_model\n"
        "from fishpaw.weights.save import save\nmodel = load_model(sys.argv[1])\nresource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n"
        "try:\n    save(model, sys.argv[1])\nexcept FishpawError as error:\n    print(error); sys.exit(error.exit_code)"
    )
    source = Path(fishpaw.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m"], env={**os.environ, "PYTHONPATH": str(source)},
                          capture_output=True, encoding="utf-8", timeout=60, check=False)  # fmt: skip
    assert "Free some space" in done.stdout and done.returncode == 2, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    assert all((tmp_path / "m" / path.name).read_bytes() == path.read_bytes() for path in saved.iterdir())
    load_model(tmp_path / "m")


def test_a_save_that_died_is_settled_by_the_next_load(saved, tmp_path):
    """Killed between the two renames, a model stands under its old name's shadow only."""
    shutil.copytree(saved, tmp_path / ".m.old")
    shutil.copytree(saved, tmp_path / ".m.new")
    (tmp_path / ".m.new" / "model.safetensors").write_bytes(b"half")
    load_model(f"{tmp_path}/m/")
    assert (tmp_path / "m" / "manifest.json").is_file() and not (tmp_path / ".m.old").exists()


def test_a_second_writer_names_the_first(saved, tmp_path, monkeypatch):
    model = load_model(saved)
    patient = files.lock
    monkeypatch.setattr(files, "lock", lambda path, timeout=60.0: patient(path, timeout=0.05))
    with patient(tmp_path / "m"), pytest.raises(FishpawError, match=f"process {os.getpid()} is writing there"):
        save(model, tmp_path / "m")
    save(model, tmp_path / "m")


def test_not_writable_says_what_to_do(saved, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FishpawError, match="Permission denied.*Choose a folder that you may write to"):
        save(load_model(saved), tmp_path / "m")


def test_offline_through_load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(HubError, match="HF_ENDPOINT.*local folder") as error:
        load("owner/there-is-no-such-model")
    assert error.value.exit_code == 3 and time.monotonic() - begin < 60


@pytest.mark.parametrize("name", ["x" * 5_000, "/", "/proc/1/root/x", "nothing/at/all", "~/there-is-no-such-model"])
def test_names_of_nothing(name):
    with pytest.raises(CheckpointError):
        load_model(name)


@pytest.mark.parametrize(("call", "said"), [
    (lambda folder: load_model(folder, dtype=torch.int8), "dtype is torch.int8"),
    (lambda folder: load_model(folder, family="brt"), "Did you mean 'bert'"),
    (lambda folder: load_model(folder, heads="mlm"), "heads is 'mlm'"),
    (lambda folder: load_model(folder, heads=("classifier",)), "labels"),
    (lambda folder: load_model(folder, heads=("nsp",)), 'Add "pooler"'),
    (lambda folder: load_model(folder, mask="casual"), "Did you mean 'causal'"),
    (lambda folder: load_model(folder, position={"name": "rotary", "thta": 1}), "can't be built with the options"),
    (lambda folder: inspect(folder, changes={"layer": 3}), "Unknown field 'layer'"),
    (lambda folder: load_model(""), "no name of a model"),
    (lambda folder: load_model("a\0b"), "no name of a model"),
    (lambda folder: load_model("owner/name@../x"), "no revision"),
])  # fmt: skip
def test_arguments_that_cannot_be(folder, call: Callable[[Path], Any], said):
    with pytest.raises(ConfigError, match=said) as error:
        call(folder)
    assert one_sentence(error.value) and "config.json" not in error.value.what
