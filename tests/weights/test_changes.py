"""What a caller changes: what a new switch takes over from the file, and what is said where changes and weights don't fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.switch import spec_name
from fishpaw.weights.changes import adapted
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import load, load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.save import save
from fishpaw.weights.translate import read_config

SIZES = {"vocab_size": 23, "hidden_size": 24, "layers": 3, "attention_heads": 3, "intermediate_size": 17, "max_positions": 31}
HALF = {"name": "rotary", "layout": "half", "theta": 500_000.0}
LLAMA_FIELDS = {"model_type": "llama", "vocab_size": 23, "hidden_size": 24, "intermediate_size": 17, "num_hidden_layers": 2,
                "num_attention_heads": 3, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 31}  # fmt: skip


def made(config: ModelConfig) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    llama = read_config(LLAMA_FIELDS, FAMILIES["llama"]).change({"heads": ("lm",), "tie_embeddings": False})
    save(made(llama), root / "llama")
    save(made(ModelConfig(**SIZES, heads=("pooler", "mlm"))), root / "bert")
    return {name: root / name for name in ("llama", "bert")}


@pytest.mark.parametrize("position", [
    "rotary", {"name": "rotary_ntk", "factor": 1.0}, {"name": "rotary_interpolated", "factor": 1.0}, {"name": "rerope", "window": 29},
    {"name": "leaky_rerope", "stretch": 1.0}, {"name": "rotary_llama3", "factor": 1.0},
    {"name": "rotary_yarn", "factor": 1.0, "temperature": 1.0},
])  # fmt: skip
def test_another_rotary_position_reads_the_files_weights_its_way(folders, position):
    """Each is the plain model at these options; without the file's theta or layout none would be."""
    plain, other = load_model(folders["llama"]), load_model(folders["llama"], position=position)
    ids = torch.randint(23, (2, 19), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, found = plain(ids).logits, other(ids).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        options = {"name": position} if isinstance(position, str) else position
        for fault in ({"theta": 10_000.0}, {"layout": "pairs"}):      # the planted faults
            wrong = load_model(folders["llama"], position={**options, **fault})
            assert (wrong(ids).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("before", "position", "after"), [
    (HALF, {"name": "rotary", "theta": 7.0}, {"name": "rotary", "theta": 7.0, "layout": "half"}),
    ("rotary", "rotary_llama3", {"name": "rotary_llama3", "theta": 10_000.0, "layout": "pairs"}),
    ({**HALF, "share": 0.5, "log_n": 512}, "rerope",
     {"name": "rerope", "theta": 500_000.0, "layout": "half", "share": 0.5, "log_n": 512}),
    (HALF, "rotary", HALF),
    (HALF, "none", "none"),
    (HALF, "learned", "learned"),
    ("learned", "hierarchical", "hierarchical"),
    ({"name": "learned", "offset": 2}, "hierarchical", {"name": "hierarchical", "offset": 2}),
    ({"name": "learned", "offset": 2}, {"name": "hierarchical", "offset": 0}, {"name": "hierarchical", "offset": 0}),
    ([HALF, "rotary"], "rerope", ({"name": "rerope", "theta": 500_000.0, "layout": "half"}, "rerope", {"name": "rerope",
     "theta": 500_000.0, "layout": "half"})),
    (HALF, ["rerope", "none"], ({"name": "rerope", "theta": 500_000.0, "layout": "half"}, "none")),
])  # fmt: skip
def test_options_that_are_left_out_are_the_files(before, position, after):
    config = adapted(ModelConfig(**SIZES, position=before), {"position": position})
    expected = ModelConfig(**SIZES, position=after)
    assert [config.turns("position")[layer % len(config.turns("position"))] for layer in range(3)] == [
        expected.turns("position")[layer % len(expected.turns("position"))] for layer in range(3)
    ]


def test_a_part_of_your_own_and_untouched_positions_stay():
    before = ModelConfig(**SIZES, position=[HALF, "none"])
    assert adapted(before, {"dropout": 0.3}).position == before.position
    own = adapted(before, {"position": torch.nn.Identity})
    assert [spec_name(spec) for spec in own.turns("position")] == ["Identity"]
    with pytest.raises(ConfigError, match='needs a "name"'):
        adapted(before, {"position": {"theta": 3.0}})


def test_any_field_may_be_changed(folders):
    changes = {"stream": "positions", "mask": {"name": "full", "exclude_self": True}}
    assert load_model(folders["bert"], changes=changes).config.stream == "positions"
    with pytest.raises(ConfigError, match="^mask: given both by name and in changes"):
        load_model(folders["bert"], mask="causal", changes=changes)
    with pytest.raises(ConfigError, match="changes is 'pre'"):
        load_model(folders["bert"], changes="pre")
    with pytest.raises(ConfigError, match="Unknown field 'norm_att'"):
        load(folders["bert"], changes={"norm_att": "pre"})


@pytest.mark.parametrize(("changes", "said", "fix"), [
    ({"embedding_size": 5}, "embedding_size=5", "Leave out"), ({"layers": 2}, "layers=2", "keep_layers"),
    ({"layers": 9}, "layers=9", "keep_layers"),
    ({"layers": 900}, "layers=900", "keep_layers"), ({"hidden_size": 27, "dropout": 0.0}, "hidden_size=27", "Leave out"),
    ({"vocab_size": 2**30}, "vocab_size=1073741824", "Leave out"),
])  # fmt: skip
def test_changes_that_do_not_fit_the_weights_are_named(folders, changes, said, fix):
    with pytest.raises(ConfigError, match=f"^The changes {said} don't fit the weights: ") as error:
        load_model(folders["bert"], changes=changes)
    assert fix in error.value.fix and "config.json of this file" not in str(error.value)


def test_a_config_of_another_file_is_still_told_so(folders, tmp_path):
    for path in folders["bert"].iterdir():
        text = path.read_bytes()
        changed = text.replace(b'"hidden_size": 24', b'"hidden_size": 27') if path.name == "config.json" else text
        (tmp_path / path.name).write_bytes(changed)
    with pytest.raises(CheckpointError, match="Is this config.json of this file"):
        load_model(tmp_path, changes={"dropout": 0.0, "qk_norm": True}, verify=False)


@pytest.mark.parametrize("heads", [None, ("mlm",), ("pooler", "mlm")])
def test_only_what_nobody_left_out_is_a_surprise(folders, caplog, heads):
    """A head that the caller leaves out is no news; here there is none that we can't build."""
    with caplog.at_level(logging.INFO, "fishpaw"):
        load_model(folders["bert"], heads=heads, position="rotary")
    lines = [record for record in caplog.records if "not used" in record.getMessage()]
    assert lines and {record.levelname for record in lines} == {"INFO"}


@pytest.mark.parametrize(("options", "said"), [
    ({"dtype": "bfloat16"}, "dtype is 'bfloat16'. Give torch.bfloat16"), ({"dtype": "half-ish"}, "Give torch.float32"),
    ({"dtype": None}, "dtype is None"),
])  # fmt: skip
def test_a_type_that_is_a_string(folders, options, said):
    with pytest.raises(ConfigError, match=said):
        load_model(folders["bert"], **options)


@pytest.mark.parametrize("name", [None, 3, ["bert"]])
def test_a_name_that_is_none(name: Any):
    with pytest.raises(ConfigError, match="The model's name is .* Give a folder, a file or a hub id"):
        load_model(name)


def test_masks_of_two_clocks_are_refused_with_a_way_out(folders):
    with pytest.raises(ConfigError, match="mask lists full, causal") as error:
        load_model(folders["llama"], mask=["full", "causal"])
    assert "share their clock" in error.value.fix and '"window": 128' in error.value.fix
    load_model(folders["llama"], mask=["causal", {"name": "causal", "window": 128}])


def test_a_classifier_on_a_decoder_is_a_warning(folders, tmp_path, caplog):
    tensors = {name: value.clone() for name, value in read_folder(folders["llama"]).items()}
    (tmp_path / "config.json").write_bytes((folders["llama"] / "config.json").read_bytes())
    write_safetensors({**tensors, "score.weight": torch.zeros(2, 24)}, tmp_path / "model.safetensors")
    load_model(tmp_path)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and "1 tensors have no place, and are not used: score.weight; a head for them isn't built" in told[0]
