"""Penalties against derivatives by hand: whither the embedding is moved and how far, what that adds, and that nothing stays behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError
from fishpaw.losses.classification import cross_entropy
from fishpaw.losses.generation import masked_cross_entropy
from fishpaw.losses.penalties import Loss, adversarial, gradient_penalty, r_drop, symmetric_kl, virtual_adversarial, with_term
from fishpaw.losses.weissi import matrices
from fishpaw.model.transformer import Transformer
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

torch.set_num_threads(1)
Pair = tuple[Tensor, Tensor]


class Reader(nn.Module):
    """ids [b t] -> logits [b 3]: an embedding, a bend, a mean over the text."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Embedding(13, 5)
        self.dropout = nn.Dropout(dropout)
        self.inner, self.outer = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.table(ids))

    def read(self, vectors: Tensor) -> Tensor:
        return self.outer(self.dropout(self.inner(vectors).tanh()).mean(1))  # type: ignore[no-any-return]


def reader(dropout: float = 0.0) -> Reader:
    torch.manual_seed(3)
    model = Reader(dropout).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.8)
    return model


def pair() -> Pair:
    draw = torch.Generator().manual_seed(5)
    return torch.randint(13, (4, 6), generator=draw), torch.tensor([2, 0, 1, 2])


def answer(model: nn.Module, batch: Pair) -> Tensor:
    return model(batch[0])  # type: ignore[no-any-return]


def loss(model: nn.Module, batch: Pair) -> Pair:
    return cross_entropy(answer(model, batch), batch[1])


def rows(batch: Pair) -> Tensor:
    return torch.arange(len(batch[0]))[:, None].expand(batch[0].shape)


def by_vectors(model: Reader, batch: Pair, vectors: Tensor) -> Tensor:
    return cross_entropy(model.read(vectors), batch[1])[0]


def moved_in_each_pass(model: Reader, call: Callable[[], object]) -> list[Tensor]:
    """What the embedding gave in each pass, less what it gives."""
    given: list[Tensor] = []
    reads = model.read

    def read(vectors: Tensor) -> Tensor:
        given.append(vectors.detach().clone())
        return reads(vectors)

    model.read = read  # type: ignore[method-assign]
    call()
    model.read = reads  # type: ignore[method-assign]
    return [one - given[0] for one in given]


def lengths(shift: Tensor) -> Tensor:
    return shift.flatten(1).norm(dim=1)


# Adversarial

def test_one_step_goes_the_given_way_up_the_gradient_of_each_example() -> None:
    model, batch = reader(), pair()
    vectors = model.table(batch[0]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(by_vectors(model, batch, vectors), vectors)
    wanted = 0.3 * gradient / lengths(gradient)[:, None, None]
    attacked = adversarial(loss, model.table, rows=rows, epsilon=0.3, weight=0.7)
    first, second = moved_in_each_pass(model, lambda: attacked(model, batch))
    assert not first.any()
    torch.testing.assert_close(second, wanted, atol=1e-12, rtol=0)
    total, count = attacked(model, batch)
    hard = by_vectors(model, batch, vectors.detach() + wanted)
    torch.testing.assert_close(total, loss(model, batch)[0] + 0.7 * hard, atol=1e-12, rtol=0)
    assert float(count) == 4
    planted = 0.3 * gradient / gradient.norm()                        # one length for the whole batch
    assert (planted - second).abs().max() > 0.01


def test_without_weight_it_is_the_loss_with_its_gradients() -> None:
    model, batch = reader(), pair()
    for penalised in (
        adversarial(loss, model.table, rows=rows, weight=0.0),
        virtual_adversarial(loss, answer, model.table, rows=rows, weight=0.0),
        gradient_penalty(loss, model.table, weight=0.0),
        with_term(loss, lambda model: model.outer.weight.sum(), weight=0.0),  # type: ignore[union-attr, operator]
        r_drop(lambda model, batch: (model(batch[0]), batch[1]), cross_entropy, weight=0.0),
    ):
        total, count = penalised(model, batch)
        plain, number = loss(model, batch)
        torch.testing.assert_close((total, count), (plain, number), atol=1e-12, rtol=0)
        parameters = list(model.parameters())
        for one, other in zip(*(torch.autograd.grad(value, parameters) for value in (total, plain)), strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_to_first_order_it_adds_epsilon_times_the_length_of_the_gradient() -> None:
    model, batch = reader(), pair()
    vectors = model.table(batch[0]).detach().requires_grad_()
    slope = lengths(torch.autograd.grad(by_vectors(model, batch, vectors), vectors)[0]).sum()
    total, _ = adversarial(loss, model.table, rows=rows, epsilon=1e-6)(model, batch)
    torch.testing.assert_close((total - 2 * loss(model, batch)[0]) / 1e-6, slope, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [3, 7])
def test_more_steps_stay_within_epsilon_and_find_more(steps: int) -> None:
    model, batch = reader(), pair()
    hard = {}
    for count in (1, steps):
        attacked = adversarial(loss, model.table, rows=rows, epsilon=1.5, steps=count, rate=1.5 if count == 1 else 0.9)
        passes = moved_in_each_pass(model, partial(attacked, model, batch))
        assert len(passes) == count + 1
        assert all(float(lengths(one).max()) <= 1.5 + 1e-12 for one in passes)
        hard[count] = attacked(model, batch)[0].item()
    assert hard[steps] > hard[1]
    assert float(lengths(passes[-1]).min()) > 1.4                     # it went as far as it was let


def test_the_step_that_is_not_given_is_epsilon_over_the_steps() -> None:
    model, batch = reader(), pair()
    one, other = (adversarial(loss, model.table, rows=rows, epsilon=0.6, steps=3, rate=rate)(model, batch)[0] for rate in (None, 0.2))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_uphill_is_uphill_with_dropout_too(dropout: float) -> None:
    model, batch = reader(dropout), pair()
    for seed in range(5):
        torch.manual_seed(seed)
        plain = loss(model, batch)[0].item()
        torch.manual_seed(seed)
        total = adversarial(loss, model.table, rows=rows, epsilon=1e-3)(model, batch)[0].item()
        assert plain < total - plain < plain + 0.1                    # other masks would change it by far more, either way


def test_no_example_depends_on_its_neighbours() -> None:
    model, batch = reader(), pair()
    for penalised in (adversarial(loss, model.table, rows=rows, steps=2), gradient_penalty(loss, model.table)):
        parts = [penalised(model, (batch[0][at], batch[1][at])) for at in (slice(0, 1), slice(1, 4))]
        total, count = penalised(model, batch)
        torch.testing.assert_close(sum(one for one, _ in parts), total, atol=1e-12, rtol=0)
        assert float(sum(one for _, one in parts)) == float(count)
    as_one = adversarial(loss, model.table, rows=lambda batch: torch.zeros(batch[0].shape).long(), steps=2)
    parts = [as_one(model, (batch[0][at], batch[1][at])) for at in (slice(0, 1), slice(1, 4))]
    assert abs(sum(one for one, _ in parts) - as_one(model, batch)[0]) > 1e-2     # planted: one length a batch


def test_an_example_without_gradient_is_not_moved_and_a_tiny_gradient_is() -> None:
    model, (ids, labels) = reader(), pair()
    model.float()
    labels = labels.clone()
    labels[1] = -100
    batch = ids, labels
    tiny: Loss = lambda model, batch: (loss(model, batch)[0] * 1e-25, 1.0)  # noqa: E731 (shorter than a function)
    shift = moved_in_each_pass(model, lambda: adversarial(tiny, model.table, rows=rows, epsilon=0.3)(model, batch))[1]
    torch.testing.assert_close(lengths(shift), torch.tensor([0.3, 0.0, 0.3, 0.3]), atol=1e-6, rtol=0)


# Virtual adversarial

def test_power_iteration_finds_the_direction_of_the_largest_change() -> None:
    """KL(p || p(r)) is r F r / 2 for small r: the direction is F's first eigenvector, F the second derivative, an example at a time."""
    model, (ids, labels) = reader(), pair()
    one = ids[:1], labels[:1]
    vectors = model.table(one[0]).detach()
    known = model.read(vectors).log_softmax(-1).detach()

    def change(flat: Tensor) -> Tensor:
        return (known.exp() * (known - model.read(vectors + flat.view_as(vectors)).log_softmax(-1))).sum()

    curvature = torch.autograd.functional.hessian(change, torch.zeros(vectors.numel(), dtype=torch.float64))
    values, directions = torch.linalg.eigh(curvature)
    smoothed = virtual_adversarial(loss, answer, model.table, rows=rows, epsilon=0.01, probe=1e-4, iterations=30)
    shift = moved_in_each_pass(model, lambda: smoothed(model, one))[-1].flatten()
    assert shift.norm().item() == pytest.approx(0.01, abs=1e-12)
    assert abs(float(shift @ directions[:, -1])) == pytest.approx(0.01, rel=1e-3)
    total, _ = smoothed(model, one)
    assert (total - loss(model, one)[0]).item() == pytest.approx(float(values[-1]) * 0.01**2 / 2, rel=0.05)


def test_one_iteration_changes_the_answer_more_than_chance_does() -> None:
    model, batch = reader(), pair()
    found, chance = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        total, _ = virtual_adversarial(loss, answer, model.table, rows=rows, epsilon=0.5)(model, batch)
        found.append((total - loss(model, batch)[0]).item())
        shift = torch.randn(4, 6, 5, dtype=torch.float64)
        there = model.read(model.table(batch[0]) + 0.5 * shift / lengths(shift)[:, None, None]).log_softmax(-1)
        known = answer(model, batch).log_softmax(-1)
        chance.append((known.exp() * (known - there)).sum().item())
    assert min(found) > 0 and sum(found) > 3 * sum(chance)


def test_examples_without_a_label_teach_too() -> None:
    model, (ids, labels) = reader(), pair()
    labels = labels.clone()
    labels[1:] = -100
    torch.manual_seed(1)
    total, count = virtual_adversarial(loss, answer, model.table, rows=rows)(model, (ids, labels))
    (gradient,) = torch.autograd.grad(total - loss(model, (ids, labels))[0], model.inner.weight)
    assert float(count) == 1 and bool(gradient.abs().max() > 1e-4)


def test_with_dropout_a_small_step_still_changes_the_answer_little() -> None:
    """Of passes with masks of their own, the difference of the masks would be all."""
    model, batch = reader(0.5), pair()
    smoothed = virtual_adversarial(loss, answer, model.table, rows=rows, epsilon=1e-4)
    torch.manual_seed(2)
    plain = loss(model, batch)[0].item()
    torch.manual_seed(2)
    assert 0 < smoothed(model, batch)[0].item() - plain < 1e-6
    planted = symmetric_kl(answer(model, batch), answer(model, batch)).sum()
    assert planted.item() > 1e-2


# Gradient penalty

def test_it_adds_half_the_squared_length_of_the_gradient() -> None:
    model, batch = reader(), pair()
    vectors = model.table(batch[0]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(by_vectors(model, batch, vectors), vectors)
    total, _ = gradient_penalty(loss, model.table, weight=0.3)(model, batch)
    torch.testing.assert_close(total - loss(model, batch)[0], 0.15 * gradient.square().sum(), atol=1e-12, rtol=0)


def test_its_own_gradient_is_that_of_finite_differences() -> None:
    model, batch = reader(), pair()
    names = [name for name, _ in model.named_parameters()]
    penalised = gradient_penalty(loss, model.table, weight=2.0)

    class Held(nn.Module):
        def forward(self, *values: Tensor) -> Tensor:
            return penalised(Called(dict(zip(names, values, strict=True))), batch)[0]

    class Called(nn.Module):
        """The model with other weights; its parameters are found where the loss looks for them."""

        def __init__(self, values: dict[str, Tensor]) -> None:
            super().__init__()
            self.values = values

        def forward(self, ids: Tensor) -> Tensor:
            return torch.func.functional_call(model, self.values, (ids,))  # type: ignore[no-any-return]

    given = tuple(parameter.detach().clone().requires_grad_() for parameter in model.parameters())
    assert torch.autograd.gradcheck(Held(), given, eps=1e-6, atol=1e-5)


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    shape = {"heads": ["lm"], "mask": "causal", "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6}
    model = Transformer(ModelConfig(13, 8, 2, 2, 12, **shape)).double()
    batch = Batch.padded(pair()[0]), pair()[0].flatten()

    def predict(model: nn.Module, batch: tuple[Batch, Tensor]) -> Pair:
        return masked_cross_entropy(model(batch[0]).logits.flatten(0, 1), batch[1])

    parameter = matrices(model)[0]                                    # of the queries, keys and values
    penalised = gradient_penalty(predict, model.embedding.tokens)
    (gradient,) = torch.autograd.grad(penalised(model, batch)[0], parameter)
    with torch.no_grad():
        numbers = []
        for step in (1e-5, -1e-5):
            parameter[0, 0] += step
            with torch.enable_grad():
                numbers.append(penalised(model, batch)[0].item())
            parameter[0, 0] -= step
    assert (numbers[0] - numbers[1]) / 2e-5 == pytest.approx(float(gradient[0, 0]), abs=1e-4)
    with pytest.raises(RuntimeError):                                 # the fused kernel, without the plain path
        total, _ = predict(model, batch)
        (slope,) = torch.autograd.grad(total, model.embedding.tokens.weight, create_graph=True)
        torch.autograd.grad(slope.square().sum(), parameter)


# R-Drop

def test_symmetric_kl_is_its_formula_and_zero_only_where_answers_are_equal() -> None:
    first, second = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    p, q = first.softmax(-1), second.softmax(-1)
    by_hand = ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)) / 2
    torch.testing.assert_close(symmetric_kl(first, second), by_hand, atol=1e-12, rtol=0)
    torch.testing.assert_close(symmetric_kl(second, first), by_hand, atol=1e-12, rtol=0)
    assert not symmetric_kl(first, first + 3.0).abs().gt(1e-12).any()
    assert torch.autograd.gradcheck(symmetric_kl, (first.requires_grad_(), second.requires_grad_()))
    assert symmetric_kl(first.bfloat16(), second.bfloat16()).dtype == torch.float32


def ask(model: nn.Module, batch: Pair) -> Pair:
    return answer(model, batch), batch[1]


def test_r_drop_is_the_mean_loss_of_two_passes_and_how_far_they_are_apart() -> None:
    model, (ids, labels) = reader(0.4), pair()
    labels = labels.clone()
    labels[2] = -100
    torch.manual_seed(4)
    one, other = (answer(model, (ids, labels)) for _ in range(2))
    assert not torch.equal(one, other)
    torch.manual_seed(4)
    total, count = r_drop(ask, cross_entropy, weight=0.7)(model, (ids, labels))
    kept = torch.tensor([0, 1, 3])
    expected = (cross_entropy(one, labels)[0] + cross_entropy(other, labels)[0]) / 2 + 0.7 * symmetric_kl(one[kept], other[kept]).sum()
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)
    assert float(count) == 3


@pytest.mark.parity
def test_r_drop_is_that_of_bert4torch(published: Callable[..., Any]) -> None:
    """There the mean of both divergences runs over entries: alpha / (2 c) is our weight."""
    first, second, labels = torch.randn(7, 5).double(), torch.randn(7, 5).double(), torch.randint(5, (7,))
    views = iter((first, second))
    total, count = r_drop(lambda model, batch: (next(views), labels), cross_entropy, weight=4.0 / 10)(nn.Identity(), None)
    torch.testing.assert_close(total / count, published("bert4torch", "losses.py").RDropLoss(alpha=4)(first, second, labels))


# What stays behind, and mistakes

def penalties(model: Reader, inner: Loss = loss) -> dict[str, Loss]:
    return {
        "one step": adversarial(inner, model.table, rows=rows),
        "steps": adversarial(inner, model.table, rows=rows, steps=3),
        "virtual": virtual_adversarial(inner, lambda model, batch: inner(model, batch)[0].expand(1, 2), model.table, rows=rows),
        "gradient": gradient_penalty(inner, model.table),
    }


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["one step", "steps", "virtual", "gradient"])
def test_nothing_stays_behind_whether_it_ends_or_raises(name: str, fails_at: int) -> None:
    model, batch = reader(0.3), pair()
    before = copy.deepcopy(model.state_dict())
    passes = 0

    def failing(model: nn.Module, batch: Pair) -> Pair:
        nonlocal passes
        passes += 1
        value = loss(model, batch)
        if passes == fails_at:
            raise MemoryError("in the middle")
        return value

    penalised = penalties(model, failing)[name]
    try:
        penalised(model, batch)
    except MemoryError:
        assert passes == fails_at
    else:
        assert passes < fails_at
    assert not model.table._forward_hooks and model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.eval()(batch[0]), model(batch[0]), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["one step", "steps", "virtual", "gradient"])
def test_a_frozen_table_is_moved_as_well(name: str) -> None:
    model, batch = reader(), pair()
    torch.manual_seed(0)
    total, _ = penalties(model)[name](model, batch)
    model.table.weight.requires_grad_(False)
    torch.manual_seed(0)
    frozen, _ = penalties(model)[name](model, batch)
    torch.testing.assert_close(frozen, total, atol=1e-12, rtol=0)
    frozen.backward()
    assert model.table.weight.grad is None and model.inner.weight.grad is not None


def test_a_module_that_does_not_run_and_rows_that_do_not_fit_are_named() -> None:
    model, batch = reader(), pair()
    elsewhere = nn.Embedding(3, 3)
    for penalised in (adversarial(loss, elsewhere, rows=rows), gradient_penalty(loss, elsewhere)):
        with pytest.raises(ConfigError, match="Embedding, whose output is to be moved, didn't run"):
            penalised(model, batch)
    with pytest.raises(ConfigError, match=r"rows gives 4 owners of vectors \[4, 6, 5\]"):
        adversarial(loss, model.table, rows=lambda batch: torch.arange(4))(model, batch)
    often = iter([1, 2, 1])

    def uneven(model: nn.Module, batch: Pair) -> Pair:
        return sum((loss(model, batch)[0] for _ in range(next(often))), torch.zeros(())), torch.ones(())

    with pytest.raises(ConfigError, match="more often in one pass"):
        adversarial(uneven, model.table, rows=rows)(model, batch)
    assert not model.table._forward_hooks


@pytest.mark.parametrize("make", [
    lambda table: adversarial(loss, table, rows=rows, epsilon=0.0), lambda table: adversarial(loss, table, rows=rows, steps=0),
    lambda table: adversarial(loss, table, rows=rows, rate=-1.0), lambda table: gradient_penalty(loss, table, weight=-1.0),
    lambda table: virtual_adversarial(loss, answer, table, rows=rows, probe=0.0), lambda table: r_drop(ask, cross_entropy, weight=math.nan),
])  # fmt: skip
def test_options_out_of_range_are_refused(make: Callable[[nn.Module], Loss]) -> None:
    with pytest.raises(ConfigError, match="Give a"):
        make(nn.Embedding(3, 3))


# In training

@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["one step", "steps", "virtual", "gradient", "r_drop"])
def test_fit_takes_each_in_one_line_with_packed_batches(name: str, precision: Any) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(13, 8, 1, 2, 12, heads=["pooler", {"name": "classifier", "labels": ["a", "b"]}]))
    examples = [(torch.arange(length) % 13, length % 2) for length in (3, 5, 7, 4, 6, 9)]

    def collate(picked: list[tuple[Tensor, int]]) -> tuple[Batch, Tensor]:
        return Batch.packed([ids for ids, _ in picked]), torch.tensor([label for _, label in picked])

    def asked(model: nn.Module, batch: tuple[Batch, Tensor]) -> Pair:
        return model(batch[0]).classes, batch[1]

    def plain(model: nn.Module, batch: tuple[Batch, Tensor]) -> Pair:
        return cross_entropy(*asked(model, batch))

    place, owners = model.embedding.tokens, lambda batch: batch[0].row
    chosen: Loss = {
        "one step": adversarial(plain, place, rows=owners),
        "steps": adversarial(plain, place, rows=owners, steps=2),
        "virtual": virtual_adversarial(plain, lambda model, batch: asked(model, batch)[0], place, rows=owners, probe=0.1),
        "gradient": gradient_penalty(plain, place),
        "r_drop": r_drop(asked, cross_entropy),
    }[name]
    options = Options(steps=3, batch_size=3, accumulate=2, learning_rate=1e-2, precision=precision)
    result = fit(model, examples, loss=chosen, collate=collate, options=options, length=lambda one: len(one[0]))
    assert result.step == 3 and math.isfinite(result.loss) and not place._forward_hooks
