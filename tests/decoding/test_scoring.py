"""Scores of given continuations: equal to log-softmax sums of a full pass, in every family; how much is computed; what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding import scoring
from fishpaw.decoding.scoring import score
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
SIZE = 23
PROMPTS = [[3, 1, 4], [7], [5, 9, 2, 6, 10]]
CONTINUATIONS = [
    [[8, 2], [8], [11, 12, 13, 14, 15, 16, 17], [2, 8, 2]],
    [],
    [[1], [22, 21, 20, 19, 18]],
]
ENCODER = {"mask": "full", "heads": (), "position": {"name": "buckets", "buckets": 8, "distance": 12}}
FAMILIES = {
    "gpt": {"mask": "causal", "position": "learned", "norm_at": "pre"},
    "rotary": {"mask": "causal", "position": "rotary", "key_value_heads": 1},
    "unilm": {"mask": "unilm", "position": "learned", "segments": 2, "heads": ("mlm",)},
    "nezha": {"mask": "causal", "position": {"name": "nezha", "reach": 3}},
    "realformer": {"mask": "causal", "position": "learned", "residual_scores": True},
    "linear": {"mask": "causal", "attention": "linear", "position": "rotary"},
    "hybrid": {"mask": [{"name": "causal", "window": 3}, "causal"], "attention": ["softmax", "sparse"], "position": "rotary", "layers": 4},
    "t5": {"mask": "causal", "position": {"name": "buckets", "buckets": 8, "distance": 12}, "norm": "rms", "norm_at": "pre"},
}


def model_of(family: str, **changes) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocab_size": SIZE, "hidden_size": 14, "layers": 2, "attention_heads": 3, "head_size": 4, "intermediate_size": 17,
             "max_positions": 13, "init_std": 0.6, "heads": ("lm",)}
    encoder = {"encoder": ModelConfig(**{**shape, **ENCODER})} if family == "t5" else {}
    return Transformer(ModelConfig(**{**shape, **FAMILIES[family], **encoder, **changes})).double().eval()


def batch(prompts=PROMPTS, *, left: bool = True) -> Batch:
    width = max(map(len, prompts))
    rows = [[(token, 1) for token in one] for one in prompts]
    rows = [([(0, 0)] * (width - len(one)) + one) if left else (one + [(0, 0)] * (width - len(one))) for one in rows]
    ids, keep = torch.tensor(rows).unbind(-1)
    return Batch.padded(ids, keep=keep.bool())


def expected(model: Transformer, prompt: list[int], continuation: list[int]) -> list[float]:
    """The log-probability of each token, from one pass over the whole text."""
    given = {}
    if model.encoder is not None:                                # the encoder reads the prompt; the answer begins with token 6
        given["encoder_batch"] = Batch.padded(torch.tensor([prompt]))
        prompt = [6]
    if model.mask.clock == "unilm":
        given["segments"] = torch.tensor([[0] * len(prompt) + [1] * (len(continuation) - 1)])
    with torch.no_grad():
        logs = model(torch.tensor([[*prompt, *continuation[:-1]]]), **given).logits[0].log_softmax(-1)
    return [float(logs[len(prompt) - 1 + place, token]) for place, token in enumerate(continuation)]


def stepper_of(model: Transformer) -> TransformerStepper:
    return TransformerStepper(model, start_id=None if model.encoder is None else 6)


def check(model: Transformer, found, prompts=PROMPTS, continuations=CONTINUATIONS) -> None:
    assert [len(group) for group in found] == [len(group) for group in continuations]
    for number, (prompt, group, ours) in enumerate(zip(prompts, continuations, found, strict=True)):
        for continuation, one in zip(group, ours, strict=True):
            assert one.tokens == tuple(continuation) == one.content and one.prompt == number and not one.ended
            assert one.log_probabilities == pytest.approx(expected(model, prompt, continuation), abs=1e-10)
            assert one.score == pytest.approx(math.fsum(expected(model, prompt, continuation)), abs=1e-10)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_log_softmax_of_a_full_pass(family, left):
    model = model_of(family)
    check(model, score(stepper_of(model), batch(left=left), CONTINUATIONS))


@pytest.mark.parametrize("family", ["gpt", "unilm", "linear", "t5"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_rows_at_a_time_change_nothing(family, rows, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS", 2 * SIZE)             # and few columns
    model = model_of(family)
    check(model, score(stepper_of(model), batch(), CONTINUATIONS, rows=rows))


def test_segments_positions_and_conditions_of_prompts_stay_theirs_in_a_part():
    model = model_of("unilm", norm={"name": "conditional", "condition": 3}, segments=3)
    for name, value in model.named_parameters():
        if name.endswith(("scale.weight", "shift.weight")):
            torch.nn.init.normal_(value, std=0.3)
    ids, keep = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7], [8, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    prompts = Batch.padded(ids, keep=keep, segments=torch.tensor([[0, 0, 2, 0], [0, 0, 0, 2], [2, 0, 0, 0]]),
                           positions=torch.arange(4) + torch.tensor([[1], [0], [3]]), condition=torch.randn(3, 3).double())
    groups = [[[9, 10, 11], [12, 13]]] * 3
    whole, parts = (score(TransformerStepper(model), prompts, groups, rows=rows) for rows in (9, 1))
    for one, other in zip(sum(whole, []), sum(parts, []), strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-10)
    plain = score(TransformerStepper(model), Batch.padded(ids, keep=keep, condition=prompts.condition), groups)
    assert abs(plain[0][0].score - whole[0][0].score) > 1e-3     # they matter


class Counted(TransformerStepper):
    """Counts prompts, tokens fed and logits made at a time."""

    def __init__(self, model):
        super().__init__(model)
        self.starts, self.fed, self.calls = [], 0, 0

    def start(self, prompts, encoder_batch=None):
        self.starts.append(len(prompts.first))
        return super().start(prompts, encoder_batch)

    def step(self, tokens):
        self.calls, self.fed = self.calls + 1, self.fed + tokens.numel()
        return super().step(tokens)


def test_a_prompt_is_read_once_and_the_last_token_never():
    stepper = Counted(model_of("gpt"))
    score(stepper, batch(), [[[1, 2, 3], [4, 5, 6], [7], [8]]] * 3)
    assert (stepper.starts, stepper.calls, stepper.fed) == ([3], 1, 3 * 2 * 2)
    stepper = Counted(model_of("gpt"))
    score(stepper, batch(), [[[token] for token in range(SIZE)]] * 3, rows=1)
    assert (stepper.starts, stepper.calls) == ([3], 0)           # a whole vocabulary of one-token answers


def test_padding_is_at_most_as_much_as_what_is_read():
    stepper = Counted(model_of("gpt", max_positions=50))
    lengths = range(2, 40)
    score(stepper, batch(), [[[1] * length for length in lengths], [], []])
    needed = sum(length - 1 for length in lengths)
    assert needed <= stepper.fed <= 2 * needed and stepper.calls <= 6


def test_what_is_behind_a_shorter_one_needs_no_position():
    """13 positions: the first prompt has room for 2 tokens more, the second for 12; the last token of each needs none."""
    model = model_of("gpt")
    prompts, groups = [[*range(11)], [3]], [[[1, 2, 3], [4]], [[*range(13)], [5, 6]]]
    for rows in (9, 2, 1):
        check(model, score(TransformerStepper(model), batch(prompts), groups, rows=rows), prompts, groups)
    with pytest.raises(DataError, match="13 positions"):
        score(TransformerStepper(model), batch(prompts), [[[1, 2, 3, 4]], groups[1]])


class Stays(TransformerStepper):
    """Planted fault: when rows leave, it is always the last ones."""

    def start(self, prompts, encoder_batch=None):
        self.fanned = False
        return super().start(prompts, encoder_batch)

    def select(self, index):
        super().select(torch.arange(len(index)) if self.fanned else index)
        self.fanned = True


def test_rows_that_do_not_move_are_caught():
    model = model_of("gpt")
    with pytest.raises(AssertionError):
        check(model, score(Stays(model), batch(), CONTINUATIONS))


def test_half_the_digits_are_summed_in_more():
    model = model_of("rotary").float()
    fine = score(TransformerStepper(model), batch(), CONTINUATIONS)
    rough = score(TransformerStepper(model.bfloat16()), batch(), CONTINUATIONS)
    for one, other in zip(sum(fine, []), sum(rough, []), strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=0.5)
    assert any(abs(value - float(torch.tensor(value).bfloat16())) > 1e-5 for value in rough[0][2].log_probabilities)


@pytest.mark.parametrize(
    ("continuations", "said"),
    [
        ([[[1]], [[2]]], "2 groups of continuations for 3 prompts"),
        ([[[1]], [[2], []], [[3]]], "Continuation 1 of prompt 1 is empty"),
        ([[[1]], [[2]], [[3, SIZE]]], f"Continuation 0 of prompt 2 has token ids from 3 to {SIZE}, but the vocabulary has {SIZE}"),
        ([[[1]], [[-1]], [[3]]], "Continuation 0 of prompt 1 has token ids from -1"),
    ],
)
def test_what_can_not_be_scored_is_refused(continuations, said):
    with pytest.raises(DataError, match=said):
        score(TransformerStepper(model_of("gpt")), batch(), continuations)


@pytest.mark.parametrize("rows", [0, -1, True, 2.0])
def test_rows_are_a_whole_number(rows):
    with pytest.raises(ConfigError, match="rows is"):
        score(TransformerStepper(model_of("gpt")), batch(), CONTINUATIONS, rows=rows)


def test_nothing_to_score_reads_nothing():
    stepper = Counted(model_of("gpt"))
    assert score(stepper, batch(), [[], [], []]) == [[], [], []] and stepper.starts == []
