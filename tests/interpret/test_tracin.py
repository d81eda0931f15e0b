"""TracIn: with a checkpoint a step it is the path kernel, with few it tells its error; compared with leave-one-out retraining."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.interpret.path_kernel import Contributions, descend
from fishpaw.interpret.tracin import Checkpoint, tracin

torch.set_num_threads(1)
EXAMPLES, WATCHED, INPUTS, RATE = 11, 3, 5, 0.2


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 7), nn.Tanh(), nn.Linear(7, 2)).double()


def data() -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(3)
    inputs = torch.randn(EXAMPLES, INPUTS, dtype=torch.float64, generator=noise)
    return inputs, (inputs[:, 0] + inputs[:, 1] > 0).long(), torch.randn(WATCHED, INPUTS, dtype=torch.float64, generator=noise)


def loss(model: nn.Module, example: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(example[0]), example[1])


def read(model: nn.Module, watched: Tensor) -> Tensor:
    scores = model(watched)
    return scores[1] - scores[0]


def pairs() -> list[tuple[Tensor, Tensor]]:
    inputs, targets, _ = data()
    return list(zip(inputs, targets, strict=True))


def course(steps: int, *, without: int | None = None, adam: bool = False) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The weights before each step of training on all examples and after the last, and Adam's 1 / (sqrt v + eps) of each step."""
    inputs, targets, _ = data()
    model = net()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.0, 0.999)) if adam else torch.optim.SGD(model.parameters(), lr=RATE)
    kept, scales = [copy.deepcopy(model.state_dict())], []
    weight = torch.tensor([0.0 if index == without else 1 / EXAMPLES for index in range(EXAMPLES)],
                          dtype=torch.float64)  # fmt: skip
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (cross_entropy(model(inputs), targets, reduction="none") * weight).sum().backward()
        optimizer.step()
        kept.append(copy.deepcopy(model.state_dict()))
        if adam:
            roots = {name: (optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**step)).sqrt() for name, p in parameters.items()}
            scales.append({name: 1 / (root + 1e-8) for name, root in roots.items()})
    return kept, scales


def exposures(steps: int, rate: float = RATE) -> Tensor:
    return torch.full((EXAMPLES,), steps * rate / EXAMPLES, dtype=torch.float64)


def asked(checkpoints: Sequence[Checkpoint], **more: object) -> Contributions:
    return tracin(net(5), checkpoints, pairs(), list(data()[2]), loss=loss, read=read, **more)


def in_segments(kept: list[dict[str, Tensor]], length: int, *, at: int) -> list[Checkpoint]:
    """A checkpoint each `length` steps, `at` steps after the segment's begin, between the ends."""
    none = torch.zeros(EXAMPLES)
    middle = [Checkpoint(kept[begin + at], exposures(length)) for begin in range(0, len(kept) - 1, length)]
    return [Checkpoint(kept[0], none), *middle, Checkpoint(kept[-1], none)]


def test_with_a_checkpoint_a_step_it_is_the_path_kernel() -> None:
    inputs, targets, watched = data()
    kept, _ = course(9)
    found = asked(in_segments(kept, 1, at=0))
    exact = descend(net(), inputs, targets, watched, loss=lambda outputs, labels: cross_entropy(outputs, labels, reduction="none"),
                    rate=RATE, steps=9, read=lambda model, x: model(x)[:, 1] - model(x)[:, 0])  # fmt: skip
    torch.testing.assert_close(found.each, exact.each, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.start, exact.start, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.end, exact.end, atol=1e-12, rtol=0)


def test_few_checkpoints_leave_an_error_that_is_told_and_the_middle_leaves_less() -> None:
    kept, _ = course(40)
    begin, middle = (asked(in_segments(kept, 10, at=at)) for at in (0, 5))
    moved = (begin.end - begin.start).abs().max()
    assert moved > 1 and middle.error.abs().max() < 0.1 * moved
    assert begin.error.abs().max() > 2 * middle.error.abs().max() > 0


def test_adam_without_momentum_steps_by_its_scaled_kernel() -> None:
    kept, scales = course(30, adam=True)
    none = torch.zeros(EXAMPLES)
    steps = [Checkpoint(weights, exposures(1, 0.01), scale) for weights, scale in zip(kept, scales, strict=False)]
    found = asked([*steps, Checkpoint(kept[-1], none)])
    moved = (found.end - found.start).abs().max()
    assert moved > 0.3 and found.error.abs().max() < 0.05 * moved      # second order in the rate
    plain = asked([*(Checkpoint(one.weights, one.exposure) for one in steps), Checkpoint(kept[-1], none)])
    assert plain.error.abs().max() > 0.5 * moved                       # planted: without the scale


def test_those_it_names_are_those_that_retraining_without_them_misses() -> None:
    """Rank correlation with the change of the output when one example is left out of the same training."""
    kept, _ = course(40)
    found = asked(in_segments(kept, 10, at=5))
    model = net()
    missed = []
    for index in range(EXAMPLES):
        model.load_state_dict(course(40, without=index)[0][-1])
        missed.append(torch.stack([found.end[m, 0] - read(model, one).detach() for m, one in enumerate(data()[2])]))
    actual = torch.stack(missed, 1)                                    # [m n]
    own = [spearman(found.each[m, 0], actual[m]) for m in range(WATCHED)]
    mixed = [spearman(found.each[m, 0].roll(1), actual[m]) for m in range(WATCHED)]              # planted: of other examples
    assert min(own) > 0.3 and sum(own) / WATCHED > 0.5 > 0.3 > sum(mixed) / WATCHED, (own, mixed)


def spearman(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def test_parameters_choose_whose_gradients_count() -> None:
    kept, _ = course(4)
    checkpoints = in_segments(kept, 2, at=1)
    first, last, both = (asked(checkpoints, parameters=names) for names in (["0."], ["2."], None))
    torch.testing.assert_close(first.each + last.each, both.each, atol=1e-12, rtol=0)
    assert last.each.abs().max() > 0.01


def test_the_model_ends_as_it_was_and_progress_is_told() -> None:
    model = net(5).train()
    before = copy.deepcopy(model.state_dict())
    told: list[int] = []
    kept, _ = course(4)
    tracin(model, in_segments(kept, 2, at=1), pairs(), list(data()[2]), loss=loss, read=read, tell=told.append)
    assert model.training and all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert sum(told) == 2 * EXAMPLES                                   # at the ends nothing is computed
    with pytest.raises(CheckpointError):
        tracin(model, [Checkpoint({"0.weight": torch.zeros(2, 2)}, torch.zeros(EXAMPLES))], pairs(), [data()[2][0]], loss=loss, read=read)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_what_cannot_be_is_refused() -> None:
    good = Checkpoint(net().state_dict(), exposures(1))
    for checkpoint, error in (
        (Checkpoint(good.weights, torch.zeros(EXAMPLES + 1)), DataError),
        (Checkpoint({"x": torch.ones(1)}, good.exposure), CheckpointError),
        (Checkpoint(good.weights, good.exposure, {"0.weight": torch.ones(7, 5)}), CheckpointError),
    ):
        with pytest.raises(error):
            asked([checkpoint])
    with pytest.raises(DataError, match="no checkpoint"):
        asked([])
    for names in (["nothing"], []):
        with pytest.raises(ConfigError):
            asked([good], parameters=names)
    with pytest.raises(DataError):
        tracin(net(), [good], [], [data()[2][0]], loss=loss, read=read)
