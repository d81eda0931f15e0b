"""ModelConfig: each mistake is answered with the name of its field, and JSON gives back what it got."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from fishpaw.config import MOST_LAYERS, MOST_PARAMETERS, ModelConfig
from fishpaw.errors import ConfigError

SIZES = {"vocab_size": 37, "hidden_size": 22, "layers": 3, "attention_heads": 2, "intermediate_size": 29}


def made(**changes):
    return ModelConfig(**{**SIZES, **changes})


def refused(**changes):
    with pytest.raises(ConfigError) as caught:
        made(**changes)
    assert caught.value.fix
    return str(caught.value)


def test_sizes_default_to_what_bert_does():
    config = made()
    assert (config.width, config.keys, config.embedding) == (11, 2, 22)
    assert config == made(head_size=11, key_value_heads=2, embedding_size=22)                   # one spelling of the usual sizes
    assert config.change({"hidden_size": 34}).embedding == 34 and config.change({"hidden_size": 34}).width == 17
    assert (config.position, config.mask, config.norm, config.norm_at, config.attention) == ("learned", "full", "layer", "post", "softmax")
    assert len(dataclasses.fields(config)) <= 32


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True, None, 2**31])
@pytest.mark.parametrize("field", [*SIZES, "max_positions"])
def test_sizes_are_whole_numbers_from_one(field, value):
    assert field in refused(**{field: value})


@pytest.mark.parametrize("field", ["head_size", "key_value_heads", "embedding_size"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True])
def test_derived_sizes_are_whole_numbers_from_one(field, value):
    assert field in refused(**{field: value})


@pytest.mark.parametrize("field", ["segments", "pad_id"])
@pytest.mark.parametrize("value", [-1, 1.5, False, None])
def test_counts_are_whole_numbers_from_zero(field, value):
    assert field in refused(**{field: value})
    assert getattr(made(**{field: 0}), field) == 0


@pytest.mark.parametrize("field", ["dropout", "attention_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), float("inf"), "0.1", True, None])
def test_rates_are_below_one(field, value):
    assert field in refused(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_std", -0.1), ("init_std", float("nan")), ("init_std", "0.02"), ("init_std", float("inf")),
        ("embedding_norm", 1), ("residual_scores", "no"), ("tie_embeddings", None), ("family", 3), ("encoder", {"layers": 2}),
        ("norm_at", "middle"), ("norm_at", 3), ("norm_at", ["pre"]), ("stream", "token"),
        ("position", 3), ("position", None), ("position", {"theta": 3}), ("position", {"name": 3}), ("mask", []), ("mask", ["full", 3]),
        ("attention", 1.5), ("norm", b"rms"), ("activation", {"name": "squareplus", "b": 2}), ("activation", 7),
        ("heads", "mlm"), ("heads", 3), ("heads", None), ("heads", [3]), ("heads", [{"labels": []}]),
    ],
)
def test_every_other_mistake_names_its_field(field, value):
    assert field in refused(**{field: value})


def test_sizes_that_do_not_divide_name_both():
    message = refused(hidden_size=23)
    assert "hidden_size 23" in message and "attention_heads 2" in message and "head_size" in message
    assert made(hidden_size=23, head_size=5).width == 5
    message = refused(attention_heads=6, head_size=4, key_value_heads=4)
    assert "attention_heads 6" in message and "key_value_heads 4" in message


@pytest.mark.parametrize("changes", [{"layers": 10**9}, {"layers": 10**9, "hidden_size": 2, "intermediate_size": 1, "vocab_size": 1},
                                     {"hidden_size": 2**31 - 1, "attention_heads": 1}, {"vocab_size": 2**31 - 1, "hidden_size": 2**20}])
def test_a_monstrous_config_is_refused_at_once(changes):
    start = time.process_time()
    assert "layers" in (message := refused(**changes)) or "parameters" in message
    assert time.process_time() - start < 1                            # not by building what it describes
    assert made(layers=MOST_LAYERS).layers == MOST_LAYERS


def test_parameters_are_near_the_truth_for_bert_base():
    config = ModelConfig(vocab_size=21128, hidden_size=768, layers=12, attention_heads=12, intermediate_size=3072)
    assert config.parameters == pytest.approx(102.3e6, rel=0.02) and config.parameters < MOST_PARAMETERS


def test_an_unknown_field_is_answered_with_the_nearest():
    for act in (lambda: ModelConfig.from_dict({**SIZES, "hiden_size": 3}), lambda: made().change({"hiden_size": 3})):
        with pytest.raises(ConfigError, match="Unknown field 'hiden_size'.*Did you mean 'hidden_size'"):
            act()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": {"name": "rotary", "theta": 500.0}, "heads": ["pooler", {"name": "classifier", "labels": ["好", "坏"]}]},
        {"mask": {"name": "causal", "window": 3}, "head_size": 7, "key_value_heads": 1, "embedding_size": 5, "residual_scores": True},
        {"encoder": ModelConfig(**{**SIZES, "hidden_size": 26}), "mask": "causal", "tie_embeddings": False},
    ],
    ids=str,
)
def test_json_gives_back_what_it_got(changes):
    config = made(**changes)
    assert ModelConfig.from_json(config.to_json()) == config == ModelConfig.from_dict(config.to_dict())
    assert list(json.loads(config.to_json())) == [field.name for field in dataclasses.fields(config)]
    assert made(dropout=0.25) != config


def test_a_spec_without_options_is_its_name():
    assert made(position={"name": "rotary"}).position == "rotary"
    assert made(activation={"name": "relu"}).activation == "relu"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: invalid JSON"), ("{", "line 1: invalid JSON"), ('{\n"layers": }', "line 2: invalid JSON"), ("[]", "not a JSON"),
        ("3", "not a JSON object"), ("null", "not a JSON object"), ('"bert"', "not a JSON object"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"), pytest.param('{"layers": ' + "9" * 5000 + "}", "digits", id="long"),
    ],
)
def test_json_that_is_no_config_is_refused(text, said):
    with pytest.raises(ConfigError, match=f"The configuration.*{said}"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize("value", [None, [], 3, "bert"])
def test_a_config_is_made_of_an_object(value):
    with pytest.raises(ConfigError, match="The configuration is a"):
        ModelConfig.from_dict(value)


def test_a_key_that_stands_twice_is_refused_at_any_depth():
    text = made().to_json()
    faults = {'"layers": 3': '"layers": 3, "layers": 4', '"learned"': '{"name": "none", "name": "learned"}'}
    for twice in (text.replace(right, wrong) for right, wrong in faults.items()):
        assert twice != text
        with pytest.raises(ConfigError, match="'layers' stands twice|'name' stands twice"):
            ModelConfig.from_json(twice)


def test_missing_fields_are_named():
    with pytest.raises(ConfigError, match="lacks layers, intermediate_size"):
        ModelConfig.from_dict({"vocab_size": 1, "hidden_size": 1, "attention_heads": 1})


@pytest.mark.parametrize("heads", [3, "mlm", None, {"name": "mlm"}])
def test_bad_heads_in_a_file_are_a_config_error(heads):
    with pytest.raises(ConfigError, match="heads"):
        ModelConfig.from_dict({**SIZES, "heads": heads})


@pytest.mark.parametrize("field", ["activation", "attention", "position", "mask", "norm"])
def test_a_file_names_no_code_and_holds_no_callable(field):
    for spec in ("os:system", {"name": "os:system", "command": "true"}):
        with pytest.raises(ConfigError, match=f"{field} names code: 'os:system'"):
            ModelConfig.from_dict({**SIZES, field: spec})
        with pytest.raises(ConfigError, match="names code"):
            ModelConfig.from_dict({**SIZES, "encoder": {**SIZES, field: spec}})
    for own in (abs, "os:system"):
        with pytest.raises(ConfigError, match=f"{field} is '.*', a part of your own"):
            made(**{field: own}).to_json()


def test_a_head_in_a_file_names_no_code():
    with pytest.raises(ConfigError, match="heads names code"):
        ModelConfig.from_dict({**SIZES, "heads": ["mlm", {"name": "os:system"}]})
    with pytest.raises(ConfigError, match="heads is 'abs'"):
        made(heads=[abs]).to_dict()


def test_change_makes_a_valid_copy_and_leaves_the_original():
    config = made()
    assert config.change({"mask": "causal"}).mask == "causal" and config.mask == "full"
    with pytest.raises(ConfigError, match="layers"):
        config.change({"layers": 0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = 5


def test_a_part_of_ones_own_says_how_it_is_kept():
    message = refused_json(position=lambda config: None)
    assert "torch.save(model.state_dict(), FILE)" in message and "the folder fishpaw/positions" in message and "room" not in message


def refused_json(**changes):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(vocab_size=7, hidden_size=8, layers=1, attention_heads=2, intermediate_size=9, **changes).to_json()
    return str(caught.value)
