"""Choices by probability: the sums of a full pass, each calibration by its formula, and what no order or batch may change."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from fishpaw.errors import ConfigError, DataError
from fishpaw.tasks.choose import PMI, Contextual, Mean, Sum, _continuations, choose
from fishpaw.tasks.generate import Generate
from fishpaw.text.encoding import Encoding
from fishpaw.weights.load import load

KINDS = {"gpt2": None, "bert": "causal", "roformer": "unilm"}
PROMPTS = ["今天天气好", "好", "房间很热情下次还"]
CHOICES = ["好", "不好", "公园", "坏，坏"]


@pytest.fixture(params=KINDS)
def writer(pretrained, request):
    return Generate(*load(pretrained(request.param), mask=KINDS[request.param], dtype=torch.float64))


@pytest.fixture
def causal(pretrained):
    return Generate(*load(pretrained("bert"), mask="causal", dtype=torch.float64))


def tokens_of(writer, choice):
    """A choice alone: no choice here grows together with what is before it."""
    ids = writer.tokenizer.encode(choice, special=False).ids
    return [*ids, writer.ends[0]] if writer.model.mask.clock == "unilm" else ids


def log_p(writer, prompt, choice):
    """log p(choice | prompt), by one pass over both."""
    before, ids = writer.prompt(prompt).ids, tokens_of(writer, choice)
    segments = torch.tensor([[0] * len(before) + [1] * len(ids)]) if writer.model.mask.clock == "unilm" else None
    with torch.no_grad():
        logs = writer.model(torch.tensor([before + ids]), segments=segments).logits[0].log_softmax(-1)
    return math.fsum(float(logs[len(before) - 1 + place, token]) for place, token in enumerate(ids))


def test_a_score_is_the_log_probability_of_the_choice(writer):
    for prompt, found in zip(PROMPTS, choose(writer, PROMPTS, CHOICES), strict=True):
        expected = [log_p(writer, prompt, choice) for choice in CHOICES]
        assert found.scores == pytest.approx(expected, abs=1e-9)
        assert found.index == expected.index(max(expected)) and found.text == CHOICES[found.index]
        whole = math.fsum(map(math.exp, expected))
        assert found.probabilities == pytest.approx([math.exp(one) / whole for one in expected], abs=1e-9)


def test_each_calibration_is_its_formula(writer):
    neutral = ("的", "是不是")
    sums = {prompt: [log_p(writer, prompt, choice) for choice in CHOICES] for prompt in (*PROMPTS, *neutral)}

    def among(values):
        return [math.exp(one) / math.fsum(map(math.exp, values)) for one in values]

    means = [math.fsum(column) / 2 for column in zip(*(among(sums[one]) for one in neutral), strict=True)]
    lengths = [len(tokens_of(writer, choice)) for choice in CHOICES]
    formulas = {
        Mean(): lambda own: [one / length for one, length in zip(own, lengths, strict=True)],
        PMI("的"): lambda own: [one - other for one, other in zip(own, sums["的"], strict=True)],
        Contextual(neutral): lambda own: [math.log(one / other) for one, other in zip(among(own), means, strict=True)],
    }
    for calibrate, formula in formulas.items():
        for prompt, found in zip(PROMPTS, choose(writer, PROMPTS, CHOICES, calibrate=calibrate), strict=True):
            assert found.scores == pytest.approx(formula(sums[prompt]), abs=1e-9)


def test_calibrations_choose_differently(causal):
    """And hence a test that compares them can fail."""
    found = {tuple(one.index for one in choose(causal, PROMPTS, CHOICES, calibrate=calibrate))
             for calibrate in (Sum(), Mean(), PMI("的"))}
    assert len(found) > 1


def test_without_content_no_choice_is_better(writer):
    for calibrate in (PMI("是"), Contextual(["是"])):
        (found,) = choose(writer, ["是"], CHOICES, calibrate=calibrate)
        assert found.probabilities == pytest.approx([1 / 4] * 4, abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batches_and_lists_of_their_own_change_nothing(writer, batch_size):
    groups = [CHOICES, CHOICES[1:], CHOICES[:1]]
    found = choose(writer, PROMPTS, groups, calibrate=PMI("的"), batch_size=batch_size)
    for prompt, group, one in zip(PROMPTS, groups, found, strict=True):
        (alone,) = choose(writer, [prompt], group, calibrate=PMI("的"))
        assert one.scores == pytest.approx(alone.scores, abs=1e-9) and one.text == alone.text


def test_a_choice_is_what_the_text_has_more_than_the_prompt(causal):
    before = causal.prompt("don").ids
    whole, alone = causal.prompt("dont").ids, causal.tokenizer.encode("t", special=False).ids
    assert whole[:-1] == before and whole[-1:] != alone          # ##t, not t
    (found,) = choose(causal, ["don"], ["t"])
    with torch.no_grad():
        logs = causal.model(torch.tensor([before])).logits[0, -1].log_softmax(-1)
    assert found.scores == pytest.approx([float(logs[whole[-1]])], abs=1e-9)


def test_a_choice_that_grows_into_the_prompt_is_read_alone(causal):
    class Merging:
        """One token for 今天 where the two stand together, else one a letter."""

        def encode(self, text, **given):
            return Encoding([99 if one == "*" else ord(one) % 31 for one in text.replace("今天", "*")], [], [], [])

    causal.tokenizer = Merging()
    assert _continuations(causal, "好今", ("天气", "气")) == [[ord("天") % 31, ord("气") % 31], [ord("气") % 31]]


def test_a_prompt_that_is_too_long_loses_its_beginning(causal):
    long = "好" * 40                                              # of 31 positions
    (found,) = choose(causal, [long], ["坏，坏", "坏"])
    assert causal.cut == 1
    before = causal.prompt(long, max_new=2).ids
    ids = tokens_of(causal, "坏，坏")
    with torch.no_grad():
        logs = causal.model(torch.tensor([before + ids[:-1]])).logits[0].log_softmax(-1)
    assert len(before) == 29
    assert found.scores[0] == pytest.approx(math.fsum(float(logs[28 + place, token]) for place, token in enumerate(ids)), abs=1e-9)


@pytest.mark.parametrize(
    ("prompts", "choices", "said"),
    [
        ([], CHOICES, "no list of prompts"), ("好", CHOICES, "no list of prompts"), (PROMPTS, [], "no list of choices"),
        (PROMPTS, "好", "no list of choices"), (PROMPTS, ["好", ["坏"]], "texts and lists"), (PROMPTS, [["好"]], "1 lists.*3 prompts"),
        (PROMPTS, [["好"], [], ["坏"]], "Prompt 1 has no choice"), (PROMPTS, ["好", ""], "choice '' has no token"),
        (["好"], ["坏", 3], "A choice is a int, not a string: 3"), (["好"], [3], "A choice is a int"),
        (["好"], [["坏", 3]], "A choice is a int"),
        ([3], CHOICES, "A prompt is a int"),
    ],
)  # fmt: skip
def test_what_can_not_be_chosen_from_is_refused(causal, prompts, choices, said):
    with pytest.raises(DataError, match=said):
        choose(causal, prompts, choices)


def test_settings_are_checked(causal):
    for neutral in ((), "N/A"):
        with pytest.raises(ConfigError, match="neutral is"):
            Contextual(neutral)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        choose(causal, PROMPTS, CHOICES, batch_size=0)


def test_the_page_runs_and_says_the_same_in_both_languages(capsys):
    pages = [Path(__file__).resolve().parents[2] / "docs" / language / "scoring.md" for language in ("en", "zh")]
    codes = [re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S) for page in pages]
    assert len(codes[0]) == 2
    for blocks in codes:
        names: dict[str, object] = {}
        for block in blocks:
            exec(block, names)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 4 and printed[-1].split()[0] in ("动物", "植物")
    bare = [[re.sub(r" *#.*", "", block) for block in blocks] for blocks in codes]
    assert bare[0] == bare[1]
