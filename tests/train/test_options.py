"""Options: each wrong value is refused by name; precision that a device lacks is answered."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.train.options import WITHOUT_EFFECT, Options, autocast_dtype

BAD: list[tuple[str, Any]] = [
    ("epochs", 0), ("epochs", -1.0), ("epochs", math.nan), ("epochs", math.inf), ("epochs", None), ("epochs", "3"), ("steps", 0),
    ("steps", 1.5), ("batch_size", 0), ("batch_size", True), ("batch_size", "8"), ("batch_size", None), ("token_budget", 0),
    ("learning_rate", 0), ("learning_rate", -1e-5), ("learning_rate", math.nan), ("warmup", 1), ("warmup", -0.1), ("warmup", math.nan),
    ("warmup", 100), ("weight_decay", -1), ("weight_decay", None), ("clip", 0), ("clip", math.inf), ("accumulate", 0),
    ("precision", "fp8"), ("precision", None), ("seed", -1), ("seed", 0.5), ("seed", None), ("evaluate_every", 0), ("patience", 0),
    ("save_every", 0), ("save_seconds", 0), ("log_every", 0), ("log_every", None), ("threads", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is {value!r}"):
        Options(**{name: value})


def test_epochs_that_must_be_counted_one_by_one_are_bounded() -> None:
    with pytest.raises(ConfigError, match=r"epochs is 1001: with a token budget .* 1000 at most\. Give steps"):
        Options(epochs=1001, token_budget=50)
    assert Options(epochs=1e8).epochs == Options(epochs=1e8, steps=5, token_budget=50).epochs == 1e8
    assert Options(epochs=1000, token_budget=50).epochs == 1000


def test_options_without_effect_are_options() -> None:
    assert Options().__dataclass_fields__.keys() >= WITHOUT_EFFECT


def test_precision() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert autocast_dtype(Options(), cpu) is None
    assert autocast_dtype(Options(precision="bf16"), cpu) == torch.bfloat16
    with pytest.warns(UserWarning, match="fp16 .* on a CPU: training in bf16 instead"):
        assert autocast_dtype(Options(precision="fp16"), cpu) == torch.bfloat16
    with pytest.raises(ConfigError, match='Use "bf16"'):
        autocast_dtype(Options(precision="fp16"), gpu)


def test_a_gpu_without_bf16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ConfigError, match="no bf16"):
        autocast_dtype(Options(precision="bf16"), torch.device("cuda"))
