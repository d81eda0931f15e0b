"""Checks of options, and odd values in every option of every part: a model that answers with numbers, or a ConfigError that names it."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import pytest
import torch

from fishpaw import checks, switch
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
HUGE = 10**400                                                       # no float holds it
NO_NUMBERS = [True, "1", None, [], {}, math.nan, math.inf, -math.inf, HUGE, -HUGE]
ODD = [*NO_NUMBERS, 1e308, 1e-320, 2**63]
SHAPE: dict[str, Any] = {"vocab_size": 7, "hidden_size": 8, "layers": 1, "attention_heads": 2, "intermediate_size": 5}
FIELDS = {"attention": "attention", "positions": "position", "masks": "mask", "norms": "norm", "model.heads": "heads"}
REQUIRED: dict[str, dict[str, Any]] = {"conditional": {"condition": 3}, "classifier": {"labels": ["a", "b"]}}


def test_numbers_lie_between_bounds():
    for value in (1, 0.5, 1e-12, 1e12, 10**12):
        checks.number("The scale", value)
    for wrong in (*NO_NUMBERS, 0, -1, 1e13, 1e308, 1e-320):
        with pytest.raises(ConfigError, match=r"The scale is .*Give a number from 1e-12 to 1e\+12\."):
            checks.number("The scale", wrong)
    checks.number("dropout", 0, least=0, below=1)
    for wrong in (1, -0.1, HUGE, math.nan):
        with pytest.raises(ConfigError, match="dropout is .*Give a number from 0 to below 1"):
            checks.number("dropout", wrong, least=0, below=1)


def test_whole_numbers_lie_between_bounds():
    checks.whole("layers", 1, least=1)
    checks.whole("layers", 7, least=1, most=7)
    for wrong in (*NO_NUMBERS, 0, 1.0, 8, 2**63):
        with pytest.raises(ConfigError, match="layers is .*Give a whole number from 1 to 7"):
            checks.whole("layers", wrong, least=1, most=7)


def test_truths_and_names():
    for value in (True, False):
        checks.truth("bias", value)
    for wrong in (0, 1, "true", None, []):
        with pytest.raises(ConfigError, match="bias is .*Give true or false"):
            checks.truth("bias", wrong)
    checks.one_of("layout", "half", ["pairs", "half"])
    for wrong in ("pair", [], {}, None, HUGE):
        with pytest.raises(ConfigError, match="layout is .*Known: pairs, half"):
            checks.one_of("layout", wrong, ["pairs", "half"])
    with pytest.raises(ConfigError, match="Did you mean 'pairs'"):
        checks.one_of("layout", "pair", ["pairs", "half"])


def test_what_is_optional_may_be_left_out():
    for check, options in ((checks.truth, {}), (checks.whole, {"least": 0}), (checks.number, {})):
        check("field", None, optional=True, **options)
        with pytest.raises(ConfigError, match="field is .*or leave it out"):
            check("field", "x", optional=True, **options)


def test_what_is_shown_is_no_longer_than_a_line():
    assert checks.shown("a") == "'a'" and checks.shown(0.5) == "0.5"
    assert len(checks.shown(HUGE)) == 80 and checks.shown(HUGE).startswith("1000") and checks.shown(HUGE).endswith("…")
    assert checks.shown(10**5000) == "a number of thousands of digits"


# Every option of every part

def options() -> list[tuple[str, str, str]]:
    """(room, part, option): what is an option by its signature, so that a new one is here."""
    found = []
    for room in FIELDS:
        for part in switch.names(room):
            module = importlib.import_module(f"fishpaw.{room}" if room in ("masks", "norms", "model.heads") else f"fishpaw.{room}.{part}")
            maker = getattr(module, part, None) if room in ("masks", "norms", "model.heads") else module.build
            found += [(room, part, name) for name, one in inspect.signature(maker).parameters.items() if one.kind is one.KEYWORD_ONLY]
    return found


def answers(room: str, part: str, option: str, value: object) -> bool:
    """Whether there is a model with that value, which then answers with numbers; False where it is refused by the option's name."""
    spec: Any = {"name": part, **REQUIRED.get(part, {}), option: value}
    shape = {**SHAPE, "max_positions": 11, "dropout": 0.0}
    heads = ["pooler", spec] if part in ("nsp", "classifier") else [spec]
    try:
        model = Transformer(ModelConfig(**{**shape, FIELDS[room]: heads if room == "model.heads" else spec})).eval()
    except ConfigError as error:
        assert option.replace("_", " ") in str(error).replace("_", " ") and len(str(error)) < 400
        return False
    condition = torch.ones(2, 3) if part == "conditional" else None
    with torch.no_grad():
        output = model(torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]), condition=condition)
    made = [one for one in (output.hidden, output.logits, output.replaced, output.pooled, output.nsp, output.classes) if one is not None]
    assert all(bool(one.isfinite().all()) for one in made)
    return True


@pytest.mark.parametrize(("room", "part", "option"), options(), ids=lambda one: str(one))
def test_an_odd_value_in_any_option_gives_a_model_or_is_refused_by_name(room, part, option):
    taken = [value for value in ODD if answers(room, part, option, value)]
    assert not any(one is odd for one in taken for odd in (HUGE, -HUGE, math.nan, math.inf, -math.inf))


def test_the_options_are_found_and_most_odd_values_refused():
    found = options()
    assert len(found) > 60 and {room for room, _, _ in found} == set(FIELDS)
    assert ("positions", "rotary_yarn", "beta_fast") in found and ("norms", "conditional", "condition") in found


@pytest.mark.parametrize(
    ("field", "part", "option", "most"),
    [("position", "nezha", "reach", 2**16), ("position", "buckets", "buckets", 2**12), ("attention", "performer", "features", 2**16),
     ("norm", "conditional", "condition", 2**16), ("norm", "conditional", "hidden", 2**16)],
)  # fmt: skip
def test_no_option_asks_for_memory_without_bound(field, part, option, most):
    for count in (most + 2, 3 * 10**8, 10**9, 10**18):
        spec = {"name": part, **REQUIRED.get(part, {}), option: count}
        with pytest.raises(ConfigError, match=f"{option} is {count}.*to {most}"), torch.device("meta"):
            Transformer(ModelConfig(**{**SHAPE, field: spec}))


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("field", ["dropout", "init_std", "layers", "norm_at", "qk_norm", "stream", "embedding_size", "distinct_layers"])
def test_odd_values_in_fields_are_refused_by_name(field, value):
    if (field in ("embedding_size", "distinct_layers") and value is None) or (field == "qk_norm" and value is True):
        return
    if field in ("dropout", "init_std") and value == 1e-320:
        return
    with pytest.raises(ConfigError, match=field):
        ModelConfig(**{**SHAPE, field: value})
