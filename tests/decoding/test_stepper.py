"""A Transformer as a Stepper: what it answers, what it refuses, and a search over it. The tree of its beams: tests/test_contracts.py."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.search import beam, greedy
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"vocab_size": 11, "hidden_size": 14, "layers": 2, "attention_heads": 1, "intermediate_size": 17, "mask": "causal",
             "max_positions": 13, "dropout": 0.3, "attention_dropout": 0.3, "init_std": 0.6, "heads": ("lm",)}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval()


PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 10]]


def batch(prompts=PROMPTS, left=False):
    width = max(map(len, prompts))
    rows = [([0] * (width - len(one)), one)[:: 1 if left else -1] for one in prompts]
    keep = [([False] * (width - len(one)), [True] * len(one))[:: 1 if left else -1] for one in prompts]
    return Batch.padded(torch.tensor([sum(row, []) for row in rows]), keep=torch.tensor([sum(row, []) for row in keep]))


def next_scores(model, tokens, **given):
    with torch.no_grad():
        return model(torch.tensor([tokens]), **given).logits[0, -1]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("heads", [("lm",), ("mlm",)])
def test_it_scores_what_comes_after_each_prompt_and_each_step(left, heads):
    model = tiny(heads=heads)
    stepper = TransformerStepper(model)
    logits = stepper.start(batch(left=left))
    assert logits.shape == (3, 11) and not logits.requires_grad
    logits = torch.stack([logits, stepper.step(torch.tensor([7, 8, 9])), stepper.step(torch.tensor([[1], [2], [3]]))[:, 0]])
    for row, (prompt, first, second) in enumerate(zip(PROMPTS, (7, 8, 9), (1, 2, 3), strict=True)):
        expected = [next_scores(model, tokens) for tokens in (prompt, [*prompt, first], [*prompt, first, second])]
        assert float((logits[:, row] - torch.stack(expected)).abs().max()) < 1e-10


def test_greedy_search_is_the_argmax_of_reading_everything_anew():
    model = tiny(position="rotary")
    found = greedy(TransformerStepper(model), batch(), limits=Limits(max_new=7, ends=(0,)))
    for prompt, one in zip(PROMPTS, found, strict=True):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 7 and (len(tokens) == len(prompt) or tokens[-1] != 0):
            tokens.append(int(next_scores(model, tokens).argmax()))
        assert list(one.tokens) == tokens[len(prompt):]


def test_wide_beams_are_exhaustive_search():
    model = tiny(vocab_size=5, seed=4)
    prompts = [[3, 1], [2], [4, 4, 1]]
    found = beam(TransformerStepper(model), batch(prompts), beams=25, n=3, limits=Limits(max_new=3, ends=(0,)))
    for prompt, best in zip(prompts, found, strict=True):
        scored = {}
        for tokens in itertools.product(range(5), repeat=3):
            tokens = tokens[: tokens.index(0) + 1] if 0 in tokens else tokens
            logs = [next_scores(model, [*prompt, *tokens[:i]]).log_softmax(-1)[token] for i, token in enumerate(tokens)]
            scored[tokens] = math.fsum(map(float, logs))
        expected = sorted(scored.items(), key=lambda pair: -pair[1])[:3]
        assert [one.tokens for one in best] == [tokens for tokens, _ in expected]
        assert [one.score for one in best] == pytest.approx([score for _, score in expected], abs=1e-10)


@pytest.mark.parametrize("segment", [1, 2])
def test_generated_tokens_of_a_unilm_are_of_one_segment(segment):
    model = tiny(mask="unilm", segments=3)
    stepper = TransformerStepper(model, segment=segment)
    stepper.start(batch())
    logits = stepper.step(torch.tensor([[7, 2], [8, 2], [9, 2]]))
    for prompt, token, row in zip(PROMPTS, (7, 8, 9), logits, strict=True):
        segments = torch.tensor([[0] * len(prompt) + [segment] * 2])
        assert float((next_scores(model, [*prompt, token, 2], segments=segments) - row[-1]).abs().max()) < 1e-10


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_steps_count_on_from_the_positions_that_the_prompt_was_given(position):
    model = tiny(position=position)
    stepper = TransformerStepper(model)
    stepper.start(Batch.padded(torch.tensor([[3, 1, 4]]), positions=torch.tensor([[2, 5, 4]])))
    found = stepper.step(torch.tensor([[7, 8]]))[0, -1]
    expected = next_scores(model, [3, 1, 4, 7, 8], positions=torch.tensor([[2, 5, 4, 5, 6]]))
    assert float((found - expected).abs().max()) < 1e-10
    if position == "learned":
        with pytest.raises(DataError, match="positions go from 7 to 14, but the model has 13"):
            stepper.step(torch.zeros(1, 8, dtype=torch.long))


def test_a_model_in_training_is_read_without_dropout_and_goes_on_training():
    model = tiny().train()
    model.layers[0].dropout.eval()                                  # frozen by its owner
    before = [module.training for module in model.modules()]
    stepper = TransformerStepper(model)
    logits = [stepper.start(batch()), stepper.step(torch.tensor([1, 2, 3]))]
    assert [module.training for module in model.modules()] == before and True in before and False in before
    assert float((logits[1][1] - next_scores(model.eval(), [1, 2])).abs().max()) < 1e-10


def test_a_new_start_forgets_the_last_search():
    stepper = TransformerStepper(tiny())
    first = stepper.start(batch())
    stepper.step(torch.tensor([1, 2, 3]))
    assert torch.equal(stepper.start(batch()), first)


def test_a_long_prompt_that_left_does_not_shorten_the_others():
    model = tiny()
    stepper = TransformerStepper(model)
    stepper.start(batch([[1], [2] * 11]))
    stepper.step(torch.tensor([[3, 4], [3, 4]]))
    with pytest.raises(DataError, match="14 tokens.*13 positions"):
        stepper.step(torch.tensor([5, 5]))
    stepper.start(batch([[1], [2] * 11]))
    stepper.step(torch.tensor([[3, 4], [3, 4]]))
    stepper.select(torch.tensor([0, 0]))
    logits = stepper.step(torch.tensor([[5] * 10, [6] * 10]))
    assert float((logits[1, -1] - next_scores(model, [1, 3, 4, *[6] * 10])).abs().max()) < 1e-10
    with pytest.raises(DataError, match="13 positions"):
        stepper.step(torch.tensor([5, 5]))


def test_compacting_forgets_what_no_row_descends_from():
    stepper = TransformerStepper(tiny())
    stepper.start(batch([[1, 2], [3, 4]]))
    stepper.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    stepper.step(torch.arange(6))
    stepper.select(torch.tensor([2, 3]))
    assert stepper.cache.length == 5
    stepper.compact()
    assert stepper.cache.length == 3 and stepper.cache.line is None
    stepper.compact()
    assert float((stepper.step(torch.tensor([7, 8]))[1] - next_scores(stepper.model, [3, 4, 3, 8])).abs().max()) < 1e-10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": ()}, "no head.*heads="),
        ({"heads": ("pooler", "nsp")}, "no head"),
        ({"mask": "full"}, "'full' can't decode.*causal"),
        ({"stream": "positions"}, "can't decode"),
    ],
)
def test_models_that_can_not_decode_are_refused_with_a_next_step(changes, said):
    with pytest.raises(ConfigError, match=said):
        TransformerStepper(tiny(**changes))


@pytest.mark.parametrize("segment", [-1, 2, True, 1.0])
def test_segments_that_the_model_lacks_are_refused(segment):
    with pytest.raises(ConfigError, match="segment"):
        TransformerStepper(tiny(mask="unilm"), segment=segment)


def test_prompts_that_can_not_be_read_are_refused():
    stepper = TransformerStepper(tiny())
    keep = torch.tensor([[True, True], [False, False]])
    with pytest.raises(DataError, match="prompt in row 1 has no token"):
        stepper.start(Batch.padded(torch.ones(2, 2, dtype=torch.long), keep=keep))
    with pytest.raises(DataError, match="14 tokens.*13 positions"):
        stepper.start(batch([[1] * 14]))
    with pytest.raises(DataError, match="packed"):
        stepper.start(Batch.packed([torch.tensor([1, 2])]))
    with pytest.raises(DataError, match="from 3 to 11.*vocabulary has 11"):
        stepper.start(batch([[3, 11]]))
    with pytest.raises(DataError, match="reads no encoder"):
        stepper.start(batch(), batch())


def test_an_encoder_must_be_fed():
    stepper = TransformerStepper(tiny(encoder=tiny(mask="full", heads=()).config))
    with pytest.raises(DataError, match="encoder_batch is missing"):
        stepper.start(batch())
    with pytest.raises(DataError, match="text of the encoder in row 0 has no token"):
        stepper.start(batch([[1]]), Batch.padded(torch.ones(1, 2, dtype=torch.long), keep=torch.zeros(1, 2, dtype=torch.bool)))
    with pytest.raises(ValueError, match="3 rows read 1"):
        stepper.start(batch(), batch([[1]]))
    assert stepper.start(batch(), batch([[1], [2, 3], [4]])).shape == (3, 11)


@pytest.mark.parametrize("index", [[1, 0, 2], [0, 1, 0, 2], []])
def test_rows_of_a_prompt_stay_adjacent_and_some_row_stays(index):
    stepper = TransformerStepper(tiny())
    stepper.start(batch())
    with pytest.raises(ValueError, match="adjacent|no row"):
        stepper.select(torch.tensor(index, dtype=torch.long))


@pytest.mark.parametrize("shape", [(2,), (3, 0), (3, 1, 1)])
def test_a_step_needs_a_token_for_each_live_row(shape):
    stepper = TransformerStepper(tiny())
    stepper.start(batch())
    with pytest.raises(ValueError, match="3 live rows"):
        stepper.step(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("left", [False, True])
def test_with_a_start_token_the_prompts_are_the_encoders(left):
    model = tiny(encoder=tiny(mask="full", heads=()).config)
    read = batch(left=left)
    whole, begun = TransformerStepper(model), TransformerStepper(model, start_id=7)
    expected = whole.start(Batch.padded(torch.tensor([[7], [7], [7]])), read)
    assert torch.equal(begun.start(read), expected)
    assert torch.equal(begun.step(torch.tensor([1, 2, 3])), whole.step(torch.tensor([1, 2, 3])))
    longer = Batch.padded(torch.tensor([[7, 4]] * 3))
    assert torch.equal(begun.start(longer, read), whole.start(longer, read))         # given both, it begins with nothing of its own
    with pytest.raises(ConfigError, match="start_id is given, but the model reads no encoder"):
        TransformerStepper(tiny(), start_id=7)


def test_cached_steps_in_half_the_digits_choose_what_a_full_pass_chooses():
    model = tiny(position="rotary", mask="causal").float().prepare(dtype=torch.bfloat16)
    ids = torch.arange(11)[None]
    stepper = TransformerStepper(model)
    with torch.no_grad():
        found = [stepper.start(Batch.padded(ids[:, :3])), *(stepper.step(ids[:, place]) for place in range(3, 11))]
        expected = model(ids).logits[0, 2:]
    cached = torch.cat(found)
    assert torch.equal(cached.argmax(-1), expected.argmax(-1)) and cached.dtype == torch.bfloat16
    assert float((cached - expected).abs().max()) < 0.05 * float(expected.abs().max())
