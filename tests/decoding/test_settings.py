"""Settings: the one order of processors, what excludes each other, and values out of range."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fishpaw.decoding.limits import Limits
from fishpaw.decoding.sample import sample, stream_sample
from fishpaw.decoding.search import beam, greedy
from fishpaw.decoding.settings import Settings
from fishpaw.errors import ConfigError, FishpawError

ALL = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.3, "no_repeat_ngram": 3, "dry": 0.8, "temperature": 0.9,
       "top_k": 5, "top_p": 0.9, "min_p": 0.05, "typical": 0.9, "eta": 1e-3, "epsilon": 1e-4}  # fmt: skip


def test_the_order_is_fixed():
    def constraint(logits, tokens):
        return logits

    for given in (ALL, dict(reversed(ALL.items()))):
        made = Settings(sample=True, **given).processors(constraints=[constraint])
        assert [type(one).__name__ for one in made] == ["RepetitionPenalty", "FrequencyPenalty", "PresencePenalty", "NoRepeatNgram", "Dry",
                                                        "function", "Temperature", "TopK", "TopP", "MinP", "Typical", "Eta",
                                                        "Epsilon"]  # fmt: skip
    assert Settings().processors() == []
    consistent = Settings(sample=True, top_k=5, top_p=0.9, consistent=True).processors(ends=(3,))
    assert [(type(one).__name__, one.ends) for one in consistent] == [("ConsistentTopK", (3,)), ("ConsistentTopP", (3,))]


@pytest.mark.parametrize("seed", range(3))
def test_a_search_is_the_function_of_its_name(machine, seed):
    prompts, limits, toy = [(1, 2), (3,)], Limits(9, ends=(0,)), machine(11, seed=seed)
    filters = Settings(sample=True, temperature=1.3, top_k=6).processors()
    assert Settings().search(toy, prompts, limits=limits) == [[one] for one in greedy(toy, prompts, limits=limits)]
    assert Settings(beams=4, n=2, length_penalty=1.0).search(toy, prompts, limits=limits) \
        == beam(toy, prompts, beams=4, n=2, length_penalty=1.0, limits=limits)

    def chance() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    drawn = Settings(sample=True, n=3).search(toy, prompts, limits=limits, processors=filters, generator=chance())
    assert drawn == sample(toy, prompts, n=3, limits=limits, processors=filters, generator=chance())
    streamed = Settings(sample=True).stream(toy, prompts, limits=limits, generator=chance())
    assert list(streamed) == list(stream_sample(toy, prompts, limits=limits, generator=chance()))


@pytest.mark.parametrize(
    ("given", "says"),
    [({"sample": True, "beams": 2}, "sample and beams exclude each other"),
     ({"sample": True, "contrastive_k": 2}, "sample and contrastive_k"),
     ({"beams": 2, "contrastive_k": 2}, "beams and contrastive_k"), ({"n": 2}, "n is 2"), ({"beams": 3, "n": 4}, "n is 4"),
     ({"length_penalty": 1.0}, "length_penalty is for the beam search"), ({"contrastive_alpha": 0.5}, "contrastive_alpha is for"),
     *[({name: ALL[name]}, f"{name} is for sampling. Set sample.")
       for name in ("temperature", "top_k", "top_p", "min_p", "typical", "eta", "epsilon")],
     ({"sample": True, "consistent": True}, "consistent is for top_k and top_p")],
)  # fmt: skip
def test_what_excludes_each_other(given, says):
    with pytest.raises(ConfigError, match=says):
        Settings(**given)


@pytest.mark.parametrize(("name", "value"), [
    *[("temperature", value) for value in (0, -1, float("nan"), float("inf"))], *[("top_k", value) for value in (0, -1, 1.5)],
    *[(name, value) for name in ("top_p", "min_p", "typical") for value in (0, -1, 1.1, float("nan"))],
    *[(name, value) for name in ("eta", "epsilon") for value in (0, 1, float("nan"))],
    *[("repetition_penalty", value) for value in (0, -1, float("nan"))],
    *[(name, value) for name in ("frequency_penalty", "presence_penalty") for value in (float("nan"), float("inf"))],
    ("no_repeat_ngram", 0), ("dry", -1), ("dry", float("nan")),
])  # fmt: skip
def test_values_out_of_range_are_one_sentence_that_names_them(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*allowed: ") as caught:
        Settings(sample=True, **{name: value}).processors()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in ("n", "beams") for value in ("4", None, 0, -1, 1.5, True)])
def test_numbers_of_answers_and_beams_are_checked_at_once(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*allowed: a whole number, 1 or more"):
        Settings(**{name: value})


def test_what_a_search_refuses(machine):
    toy, prompts, limits = machine(5, seed=1), [(1,)], Limits(3)
    bad = [({"beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
           ({"contrastive_k": 0}, "contrastive_k is 0"),
           ({"contrastive_k": 2, "contrastive_alpha": 2}, "contrastive_alpha is 2")]  # fmt: skip
    for given, says in bad:
        with pytest.raises(ConfigError, match=says):
            Settings(**given).search(toy, prompts, limits=limits)
    for given in ({"beams": 2}, {"sample": True, "n": 2}):
        with pytest.raises(ConfigError, match="A stream is one answer"):
            Settings(**given).stream(toy, prompts, limits=limits)
    silent = SimpleNamespace(start=lambda batch, encoder_batch=None: torch.full((1, 5), float("-inf")))
    for settings in (Settings(), Settings(beams=2), Settings(sample=True)):
        with pytest.raises(FishpawError, match="the model left no token"):
            settings.search(silent, prompts, limits=limits)
