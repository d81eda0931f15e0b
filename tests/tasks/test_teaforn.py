"""TeaForN against a walk of its passes over one text at a time, its limits (teacher forcing, student forcing), what each pass may know, and
its gradients; of a causal model, of a UniLM and of a decoder with an encoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.search import greedy
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError
from fishpaw.losses.generation import masked_cross_entropy, next_tokens, sparse_cross_entropy
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.teaforn import expectation, hidden_states, teaforn

torch.set_num_threads(1)
KINDS = ("causal", "unilm", "encoder")
WORDS = 43
TEXTS = [[2, 3, 5, 7, 11, 13, 17], [4, 6, 8, 9, 10]]                  # every token once a text: a row of the table is a place
SOURCES = [[19, 23, 29], [31, 37, 41, 38, 40]]


def make(kind: str, seed: int = 0, **changes: object) -> Transformer:
    torch.manual_seed(seed)
    shape = {"heads": ["lm"], "dropout": 0.0, "attention_dropout": 0.0, "tie_embeddings": False, "norm_at": "pre", "max_positions": 17}
    encoder = ModelConfig(WORDS, 14, 2, 2, 22, **{**shape, "heads": []}) if kind == "encoder" else None  # type: ignore[arg-type]
    mask = "unilm" if kind == "unilm" else "causal"
    shape |= {"mask": mask, "encoder": encoder, "shared_embedding": kind == "encoder", **changes}
    model = Transformer(ModelConfig(WORDS, 14, 2, 2, 22, **shape)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model.eval()


def padded(texts: list[list[int]], side: str, segments: list[list[int]] | None = None) -> Batch:
    width = max(map(len, texts)) + 1
    ids, flags, keep = torch.zeros(len(texts), width).long(), torch.zeros(len(texts), width).long(), torch.zeros(len(texts), width).bool()
    for row, text in enumerate(texts):
        at = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, at], keep[row, at] = torch.tensor(text), True
        flags[row, at] = torch.tensor(segments[row]) if segments else 0
    return Batch.padded(ids, keep=keep, segments=flags if segments else None)


def read(kind: str, layout: str = "right", rows: slice = slice(None)) -> tuple[Batch, Batch | None]:
    """What the model reads of the texts, and what its encoder does. UniLM: source, then target."""
    texts, sources = TEXTS[rows], SOURCES[rows]
    segments = None
    if kind == "unilm":
        segments = [[0] * len(source) + [1] * len(text) for source, text in zip(sources, texts, strict=True)]
        texts = [source + text for source, text in zip(sources, texts, strict=True)]
    if layout == "packed":
        flags = [torch.tensor(one) for one in segments] if segments else None
        return Batch.packed([torch.tensor(one) for one in texts], segments=flags), None
    return padded(texts, layout, segments), padded(sources, "right") if kind == "encoder" else None


def walked(model: Transformer, kind: str, weights: tuple[float, ...], moved: int = 1) -> Tensor:
    """The loss by its definition, text by text, without padding. moved: how far a state moves to stand for its token; 1 is right."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(TEXTS)):
        batch, encoder_batch = read(kind, rows=slice(row, row + 1))
        facts = {"ids": batch.unpack(batch.ids)[0][None]}
        if kind == "unilm":
            assert batch.segments is not None
            facts["segments"] = batch.unpack(batch.segments)[0][None]
        begin = len(SOURCES[row]) - 1 if kind == "unilm" else 0       # e_0: the last token of the source, or the first of the text
        ids, vectors = facts["ids"][0], model.table[facts["ids"][0]]
        for weight in weights:
            output = model(**facts, embedded=vectors, encoder_batch=encoder_batch)
            logp = output.logits[0, begin:-1].log_softmax(-1)
            total = total - weight * logp.gather(1, ids[begin + 1 :, None]).sum()
            states = output.hidden[0, begin : len(ids) - moved]
            vectors = torch.cat([model.table[ids[: begin + moved]], states])
    return total


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.3, 0.0, 0.7)])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_walk_of_its_passes_in_every_layout(kind: str, weights: tuple[float, ...]) -> None:
    model = make(kind)
    for layout in ("right", "left") if kind == "encoder" else ("right", "left", "packed"):
        batch, encoder_batch = read(kind, layout)
        total, count = teaforn(model, batch, encoder_batch=encoder_batch, weights=weights)
        torch.testing.assert_close(total, walked(model, kind, weights), atol=1e-9, rtol=1e-12)
        assert count.item() == (12 if kind == "unilm" else 10)
    assert (total - walked(model, kind, weights, moved=2)).abs().item() > 1e-2                  # a state in a later token's place


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1, 0, 0.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_without_later_passes_it_is_teacher_forcing_to_the_bit(kind: str, weights: tuple[float, ...]) -> None:
    model = make(kind, dropout=0.1).train()
    batch, encoder_batch = read(kind)
    results = []
    for way in ("teaforn", "teacher"):
        model.zero_grad()
        torch.manual_seed(3)                                          # the same units are dropped
        if way == "teaforn":
            total, count = teaforn(model, batch, encoder_batch=encoder_batch, weights=weights)
        else:
            at, targets = next_tokens(batch, segment=1 if kind == "unilm" else None)
            logits = model(batch, encoder_batch=encoder_batch, logits_at=at).logits
            total, count = masked_cross_entropy(logits, targets)
        total.backward()
        results.append([total.detach(), count, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 20
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def knows(
    kind: str, passes: int, model: Transformer, shown: Callable[..., tuple[Tensor, Tensor]] = teaforn
) -> dict[tuple[int, int], set[int]]:
    """(pass, label's place) -> the places of the text that its logits depend on, by gradients that aren't exactly zero."""
    batch, encoder_batch = read(kind, rows=slice(0, 1))
    seen: list[Tensor] = []

    def keep(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(logits)
        return masked_cross_entropy(logits, targets)

    shown(model, batch, encoder_batch=encoder_batch, weights=(1.0,) * passes, loss=keep)
    text = [SOURCES[0][-1], *TEXTS[0]] if kind == "unilm" else TEXTS[0]
    found = {}
    for turn, logits in enumerate(seen, start=1):
        for place in range(1, len(text)):
            (gradient,) = torch.autograd.grad((logits[place - 1] * torch.linspace(-1, 1, WORDS)).sum(), model.table, retain_graph=True)
            found[turn, place] = {r for r, token in enumerate(text) if bool(gradient[token].any())}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_knows_the_true_tokens_only_up_to_its_number_back(kind: str) -> None:
    passes, model = 4, make(kind)
    found = knows(kind, passes, model)
    assert found == {(s, t): set(range(max(t - s, 0) + 1)) for s, t in found}

    def unmoved(model: Transformer, batch: Batch, *, loss: Callable[..., object], **others: object) -> tuple[Tensor, Tensor]:
        """States stay where they were made: the next pass reads what has seen one token too many."""
        at, targets = next_tokens(batch, segment=1 if kind == "unilm" else None)
        output = model(batch, encoder_batch=others["encoder_batch"], logits_at=at)
        loss(output.logits, targets)
        vectors = model.table[batch.ids].index_copy(0, at, output.hidden.flatten(0, 1)[at])
        loss(model(batch, encoder_batch=others["encoder_batch"], embedded=vectors, logits_at=at).logits, targets)
        return targets, targets

    planted = knows(kind, 2, model, unmoved)
    assert planted != {(s, t): set(range(max(t - s, 0) + 1)) for s, t in planted}


def test_the_mean_vector_of_all_tokens_is_that_of_the_softmax_and_of_one_is_the_choice() -> None:
    draw = torch.Generator().manual_seed(11)
    hidden, logits, table = (torch.randn(*size, dtype=torch.float64, generator=draw) for size in ((5, 3), (5, 13), (13, 7)))
    whole = torch.stack([sum(p * table[i] for i, p in enumerate(row)) for row in logits.softmax(1)])
    for k in (None, 13, 99):
        torch.testing.assert_close(expectation(hidden, logits, table, k=k), whole, atol=1e-12, rtol=0)
    assert torch.equal(expectation(hidden, logits, table, k=1), table[logits.argmax(1)])
    row, best = logits[2].exp(), logits[2].topk(4).indices
    by_hand = sum(row[i] * table[i] for i in best) / row[best].sum()
    torch.testing.assert_close(expectation(hidden, logits, table, k=4)[2], by_hand, atol=1e-12, rtol=0)
    assert expectation(hidden, logits.bfloat16(), table.float(), k=4).dtype == torch.float32
    assert not torch.allclose(expectation(hidden, logits, table, k=4), whole)                            # k is not passed over


@pytest.mark.parametrize("norm_at", ["pre", "post"])
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_choices_fed_back_are_student_forcing(kind: str, norm_at: str) -> None:
    """Fed with the vectors of its best tokens, the second pass is the model on those ids: segments, positions and norm come anew."""
    model = make(kind, norm_at=norm_at)
    batch, encoder_batch = read(kind)
    at, targets = next_tokens(batch, segment=1 if kind == "unilm" else None)
    first = model(batch, encoder_batch=encoder_batch, logits_at=at).logits
    chosen = replace(batch, ids=batch.ids.index_copy(0, at + 1, first.argmax(1)))
    expected = masked_cross_entropy(model(chosen, encoder_batch=encoder_batch, logits_at=at).logits, targets)[0]
    total, _ = teaforn(model, batch, encoder_batch=encoder_batch, weights=(0.0, 1.0), feed=partial(expectation, k=1))
    torch.testing.assert_close(total, expected, atol=1e-10, rtol=0)
    assert (total - teaforn(model, batch, encoder_batch=encoder_batch, weights=(0.0, 1.0))[0]).abs().item() > 1e-2


@pytest.mark.parametrize("feed", [hidden_states, expectation, partial(expectation, k=4)])
@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_is_that_of_finite_differences(kind: str, feed: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    model = make(kind, tie_embeddings=True)
    batch, encoder_batch = read(kind)
    parameters = list(model.parameters())
    draw = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=draw) for p in parameters]

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=step)
        return teaforn(model, batch, encoder_batch=encoder_batch, weights=(1.0, 0.5, 0.25), feed=feed)[0]

    total = moved(0.0)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    size = 1e-6
    difference = float(moved(size).detach() - moved(-2 * size).detach()) / (2 * size)
    assert abs(slope - difference) <= 1e-6 * max(1.0, abs(difference))


def test_the_encoder_runs_once_and_decoding_is_what_it_was() -> None:
    model = make("encoder")
    assert model.encoder is not None
    batch, encoder_batch = read("encoder")
    start, limits = Batch.padded(torch.tensor([[2], [4]])), Limits(max_new=7, ends=(1,))
    before = greedy(TransformerStepper(model), start, encoder_batch, limits=limits)
    names = list(model.state_dict())
    calls: list[int] = []
    handle = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    teaforn(model, batch, encoder_batch=encoder_batch, weights=(1, 1, 1))[0].backward()
    handle.remove()
    after = greedy(TransformerStepper(model), start, encoder_batch, limits=limits)
    assert len(calls) == 1 and names == list(model.state_dict()) and [one.tokens for one in before] == [one.tokens for one in after]


def test_another_loss_takes_the_place_of_cross_entropy_in_every_pass() -> None:
    model, (batch, _) = make("causal"), read("causal")
    total, count = teaforn(model, batch, loss=partial(sparse_cross_entropy, k=3))
    assert count.item() == 10 and 0 < total.item() < teaforn(model, batch)[0].item()


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"mask": "full"}, {}, "can't be asked for its next token"),
        ({"heads": []}, {}, "can't be asked for its next token"),
        ({}, {"weights": (0.0, 0.0)}, r"weights is \(0\.0, 0\.0\)"),
        ({}, {"weights": ()}, r"weights is \(\)"),
        ({}, {"weights": (1.0, -0.5)}, r"weights is -0\.5"),
        ({"embedding_size": 6}, {}, "Hidden states of 14 units can't stand for token vectors of 6. Give feed=expectation"),
        ({}, {"feed": partial(expectation, k=0), "weights": (1, 1)}, "k is 0"),
    ],
)
def test_what_can_not_be_is_refused(changes: dict[str, object], given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        teaforn(make("causal", **changes), read("causal")[0], **given)  # type: ignore[arg-type]


def test_narrower_token_vectors_are_fed_by_expectation() -> None:
    model, (batch, _) = make("causal", embedding_size=6), read("causal")
    assert teaforn(model, batch, feed=expectation)[0].item() > teaforn(model, batch, weights=(1,))[0].item()


def test_the_page_of_losses_runs_and_says_what_is_so() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "en" / "generation_losses.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
        assert "count" not in names or names["count"].item() == (3 if "unilm" in block else 6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["self_terminating", "non_monotone"])
def test_a_head_with_an_ending_is_refused(name: str) -> None:
    model = make("causal", heads=[{"name": "lm", "ending": {"name": name, "epsilon": 0.02, "end": 3}}])
    with pytest.raises(ConfigError, match="has an ending"):
        teaforn(model, read("causal")[0])
