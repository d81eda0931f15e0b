"""Contrastive search: equal to reading everything anew for each candidate, in fp64; its limits; what it refuses."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding.contrastive import contrastive, stream_contrastive
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import TopK
from fishpaw.decoding.repetition import NoRepeatNgram
from fishpaw.decoding.search import greedy
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError, FishpawError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 10, 2]]
NEVER = float("-inf")


def tiny(**changes):
    torch.manual_seed(2)
    shape = {"vocab_size": 23, "hidden_size": 14, "layers": 2, "attention_heads": 1, "intermediate_size": 17, "mask": "causal",
             "position": "rotary", "init_std": 0.6, "heads": ("lm",)}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval()


def batch(prompts, left=True, segments=False):
    width = max(map(len, prompts))
    rows = [([0] * (width - len(one)), one)[:: 1 if left else -1] for one in prompts]
    keep = [([False] * (width - len(one)), [True] * len(one))[:: 1 if left else -1] for one in prompts]
    ids = torch.tensor([sum(row, []) for row in rows])
    return Batch.padded(ids, keep=torch.tensor([sum(row, []) for row in keep]), segments=torch.zeros_like(ids) if segments else None)


def naive(model, prompt, k, alpha, limits, source=None, ban=lambda tokens: set()):
    """No cache, no batch: each candidate of each step through the whole model. source: the encoder's text."""
    unilm = model.mask.clock == "unilm"

    def run(made):
        segments = torch.tensor([[0] * len(prompt) + [1] * len(made)]) if unilm else None
        read = None if source is None else Batch.padded(torch.tensor([source]))
        with torch.no_grad():
            out = model(Batch.padded(torch.tensor([prompt + made]), segments=segments), encoder_batch=read)
        return out.logits[0, -1], out.hidden[0]

    made, total = [], 0.0
    while len(made) < limits.max_new:
        logits, hidden = run(made)
        logits[list(ban(prompt + made))] = NEVER
        scores = logits.log_softmax(-1)
        best = None
        for token in scores.topk(k).indices.tolist():
            if scores[token] == NEVER:
                continue
            new = run([*made, token])[1]
            assert torch.allclose(new[:-1], hidden) or unilm
            likeness = torch.cosine_similarity(new[-1][None], new[:-1]).max()
            worth = (1 - alpha) * float(scores[token].exp()) - alpha * float(likeness)
            best = max(best or (-9.0, 0), (worth, token))
        made.append(best[1])
        total += float(scores[best[1]])
        if best[1] in limits.ends:
            break
    return made, total


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (7, 0.9), (23, 1.0)])
def test_it_is_the_definition_with_everything_read_anew(k, alpha, left):
    model, limits = tiny(), Limits(9, ends=(0, 8))
    found = contrastive(TransformerStepper(model, hidden=True), batch(PROMPTS, left), k=k, alpha=alpha, limits=limits)
    for number, (prompt, one) in enumerate(zip(PROMPTS, found, strict=True)):
        tokens, score = naive(model, prompt, k, alpha, limits)
        assert list(one.tokens) == tokens and one.prompt == number and one.ended is (tokens[-1] in limits.ends)
        assert one.score == pytest.approx(score, abs=1e-10) == one.log_probability
    assert len({one.tokens for one in found}) == 3


def test_a_fault_in_the_definition_is_seen():
    """Planted: padding that is compared, too, and a penalty for the last token alone would choose otherwise."""
    model, limits = tiny(), Limits(12)
    right = contrastive(TransformerStepper(model, hidden=True), batch(PROMPTS), k=7, alpha=0.9, limits=limits)
    blind = Batch.padded(batch(PROMPTS).ids.view(3, -1))
    assert [one.tokens for one in contrastive(TransformerStepper(model, hidden=True), blind, k=7, alpha=0.9, limits=limits)] \
        != [one.tokens for one in right]
    assert [one.tokens for one in contrastive(TransformerStepper(model, hidden=True), batch(PROMPTS), k=7, alpha=0.3, limits=limits)] \
        != [one.tokens for one in right]


def test_unilm_and_an_encoder():
    limits = Limits(8, ends=(0,))
    unilm = tiny(mask="unilm", segments=2)
    found = contrastive(TransformerStepper(unilm, hidden=True), batch(PROMPTS, segments=True), k=5, alpha=0.7, limits=limits)
    # the source sees itself only, so that its hidden states never change: the definition holds as it stands
    assert [list(one.tokens) for one in found] == [naive(unilm, prompt, 5, 0.7, limits)[0] for prompt in PROMPTS]
    reader = tiny(encoder=tiny(mask="full", heads=()).config)
    found = contrastive(TransformerStepper(reader, start_id=7, hidden=True), batch(PROMPTS), k=5, alpha=0.7, limits=limits)
    assert [list(one.tokens) for one in found] == [naive(reader, [7], 5, 0.7, limits, source=text)[0] for text in PROMPTS]


@pytest.mark.parametrize("settings", [{"k": 1, "alpha": 0.8}, {"k": 6, "alpha": 0}])
def test_one_candidate_and_no_penalty_are_greedy_search(settings):
    model, limits = tiny(), Limits(40, ends=(0, 8))
    expected = greedy(TransformerStepper(model), batch(PROMPTS), limits=limits)
    found = contrastive(TransformerStepper(model, hidden=True), batch(PROMPTS), limits=limits, **settings)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-9)


def test_together_as_one_by_one_and_streamed_as_whole():
    model, limits = tiny(), Limits(50, ends=(0, 8))
    stepper = TransformerStepper(model, hidden=True)
    together = contrastive(stepper, batch(PROMPTS), limits=limits)
    assert [one.tokens for one in together] == [contrastive(stepper, batch([one]), limits=limits)[0].tokens for one in PROMPTS]
    streamed = [one for one in stream_contrastive(stepper, batch(PROMPTS), limits=limits)]
    for number, one in enumerate(together):
        assert [each.token for each in streamed if each.prompt == number] == list(one.tokens)
    assert len({len(one.tokens) for one in together}) > 1        # rows left at different times
    assert stepper.cache.length < 6 + 50 * 5                     # and dead candidates were forgotten


def test_processors_and_stops_have_their_say():
    model, limits = tiny(), Limits(9)
    stepper = TransformerStepper(model, hidden=True)

    def ban(whole):
        return {token for token in range(23) if (whole[-1], token) in set(zip(whole, whole[1:], strict=False))}

    found = contrastive(stepper, batch(PROMPTS), k=4, alpha=0.2, limits=limits, processors=[NoRepeatNgram(2)])
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert list(one.tokens) == naive(model, prompt, 4, 0.2, limits, ban=ban)[0]
    one_left = contrastive(stepper, batch(PROMPTS), k=9, alpha=1.0, limits=limits, processors=[TopK(1)])
    assert [one.tokens for one in one_left] == [one.tokens for one in greedy(stepper, batch(PROMPTS), limits=limits)]
    stopped = contrastive(stepper, batch(PROMPTS), limits=limits, stops=[lambda tokens: torch.tensor([tokens.shape[1] == 3] * len(tokens))])
    assert all(len(one.tokens) == 3 and one.ended and not one.closed for one in stopped)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"k": 0}, "contrastive_k is 0"), ({"k": 2.5}, "contrastive_k is 2.5"), ({"k": 5000}, "contrastive_k is 5000"),
     ({"alpha": -0.1}, "contrastive_alpha is -0.1"), ({"alpha": 1.1}, "contrastive_alpha is 1.1"),
     ({"alpha": float("nan")}, "contrastive_alpha is nan"), ({"alpha": True}, "contrastive_alpha is True")],
)  # fmt: skip
def test_values_out_of_range(settings, says):
    with pytest.raises(ConfigError, match=says):
        stream_contrastive(TransformerStepper(tiny(), hidden=True), batch(PROMPTS), limits=Limits(3), **settings)


def test_a_stepper_without_hidden_states_and_a_filter_that_leaves_nothing():
    with pytest.raises(ConfigError, match="hidden=True"):
        contrastive(TransformerStepper(tiny()), batch(PROMPTS), limits=Limits(3))
    with pytest.raises(FishpawError, match="left no token"):
        contrastive(TransformerStepper(tiny(), hidden=True), batch(PROMPTS), limits=Limits(30), processors=[NoRepeatNgram(1)])
