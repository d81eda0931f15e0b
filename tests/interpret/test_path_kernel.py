"""The path kernel: contributions add up to what training did, exactly for linear models, else with an error that halves with the step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fishpaw.errors import ConfigError, DataError
from fishpaw.interpret.path_kernel import Contributions, Path, descend, kernel, slopes
from fishpaw.optim.derive import derive
from fishpaw.optim.transforms import WeightDecay

torch.set_num_threads(1)
EXAMPLES, WATCHED, INPUTS, CLASSES = 13, 5, 3, 2


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()


def data() -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(3)
    inputs = torch.randn(EXAMPLES, INPUTS, dtype=torch.float64, generator=noise)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long(), torch.randn(WATCHED, INPUTS, dtype=torch.float64, generator=noise)


def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - nn.functional.one_hot(targets, CLASSES)).square().sum(-1)


def trained(rate: float, steps: int, *, batch_size: int | None = None, seed: int = 0) -> Contributions:
    inputs, targets, watched = data()
    return descend(net(seed), inputs, targets, watched, loss=likelihood, rate=rate, steps=steps, batch_size=batch_size)


# The sum

def test_the_error_of_the_sum_halves_with_the_step() -> None:
    """At a fixed time eta x steps = 4, where outputs have moved by 0.4."""
    found = [trained(rate, round(4 / rate)) for rate in (0.2, 0.1, 0.05)]
    errors = [one.error.abs().max().item() for one in found]
    assert all(1.8 < large / small < 2.2 for large, small in zip(errors, errors[1:], strict=False)), errors
    assert (found[0].end - found[0].start).abs().max() > 0.4 and errors[-1] < 0.02


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("loss", [likelihood, squares])
def test_it_is_exact_for_a_model_linear_in_its_parameters(loss, batch_size) -> None:
    inputs, targets, watched = data()
    torch.manual_seed(0)
    linear = nn.Linear(INPUTS, CLASSES).double()
    found = descend(linear, inputs, targets, watched, loss=loss, rate=0.3, steps=17, batch_size=batch_size)
    assert found.error.abs().max() < 1e-10 and (found.end - found.start).abs().max() > 0.1
    planted = Contributions(found.each.roll(1, 0), found.start, found.end)               # contributions to another input
    assert planted.error.abs().max() > 0.01


def test_all_of_it_in_batches_has_an_error_of_the_same_order() -> None:
    errors = [trained(rate, round(4 / rate), batch_size=5).error.abs().max().item() for rate in (0.1, 0.05)]
    assert 1.4 < errors[0] / errors[1] < 2.8 and errors[1] < 0.05      # the order of the batches differs, so the ratio does a little


def test_contributions_of_two_trainings_do_not_add_up() -> None:
    """Halves of the examples trained on apart, from the same weights: their kernels are of other paths than that of both together."""
    inputs, targets, watched = data()
    halves = [descend(net(), inputs[part], targets[part], watched, loss=squares, rate=0.1 * share, steps=60)
              for part, share in ((slice(0, 6), 6 / EXAMPLES), (slice(6, None), 7 / EXAMPLES))]
    whole = descend(net(), inputs, targets, watched, loss=squares, rate=0.1, steps=60)
    glued = Contributions(torch.cat([one.each for one in halves], -1), whole.start, whole.end)
    assert whole.error.abs().max() < 0.1 and max(one.error.abs().max() for one in halves) < 0.1
    assert glued.error.abs().max() > 5 * whole.error.abs().max()


def test_it_trains_as_plain_gradient_descent_does() -> None:
    inputs, targets, watched = data()
    ours, plain = net(), net()
    descend(ours, inputs, targets, watched, loss=likelihood, rate=0.1, steps=9)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(9):
        optimizer.zero_grad()
        cross_entropy(plain(inputs), targets).backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_step_is_eta_a_k() -> None:
    """f and contributions by the kernel of the docstring, of vector outputs: a K over all outputs of the example."""
    inputs, targets, watched = data()
    model = net()
    outputs = model(inputs)
    pull = -torch.autograd.grad(likelihood(outputs, targets).sum(), outputs)[0]                          # a [n d]
    gram = kernel(model, watched, inputs)                                                               # [m c n d]
    expected = 0.1 / EXAMPLES * torch.einsum("mcnd,nd->mcn", gram, pull)
    found = descend(model, inputs, targets, watched, loss=likelihood, rate=0.1, steps=1)
    torch.testing.assert_close(found.each, expected.detach(), atol=1e-12, rtol=0)
    planted = 0.1 / EXAMPLES * torch.einsum("mcnd,nc->mcn", gram, pull)                                  # a scalar kernel an output
    assert (found.each - planted.detach()).abs().max() > 1e-3


def test_an_example_outside_the_batches_adds_nothing() -> None:
    inputs, targets, watched = data()
    model = net()
    path = Path(model, torch.optim.SGD(model.parameters(), lr=0.1), watched, examples=EXAMPLES)
    for chosen in ([2, 5, 3], [3, 11, 2]):
        path.step(likelihood(model(inputs[chosen]), targets[chosen]), chosen)
    each = path.contributions().each
    assert [index for index in range(EXAMPLES) if each[..., index].any()] == [2, 3, 5, 11]


def test_groups_have_rates_of_their_own_which_may_change() -> None:
    inputs, targets, watched = data()
    model = net()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.2}])
    path = Path(model, optimizer, watched, examples=EXAMPLES)
    for step in range(7):
        optimizer.param_groups[1]["lr"] = 0.2 / (1 + step)
        path.step(likelihood(model(inputs), targets), range(EXAMPLES))
    found = path.contributions()
    assert found.error.abs().max() < 1e-10                            # only the last layer moves, in which the model is linear
    assert found.each.abs().max() > 1e-3


def test_the_watched_are_read_without_dropout() -> None:
    inputs, targets, watched = data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(INPUTS, CLASSES)).double().train()
    found = descend(model, inputs, targets, watched, loss=likelihood, rate=0.3, steps=17)
    assert found.error.abs().max() < 1e-10 and model.training          # linear still: the masks are the examples' own


# The kernel

def test_the_kernel_is_a_gram_matrix() -> None:
    _, _, watched = data()
    gram = kernel(net(), watched, watched).reshape(WATCHED * CLASSES, -1).detach()
    torch.testing.assert_close(gram, gram.mT, atol=1e-12, rtol=0)
    assert torch.linalg.eigvalsh(gram).min() > -1e-10
    planted = torch.linalg.eigvalsh(gram - 0.1 * torch.eye(len(gram), dtype=gram.dtype)).min()
    assert planted < -1e-10


def test_slopes_are_one_backward_after_another() -> None:
    inputs, targets, _ = data()
    model = net()
    spare = nn.Parameter(torch.ones(3, dtype=torch.float64))            # nothing depends on it
    parameters = [*model.parameters(), spare]
    losses = likelihood(model(inputs), targets)
    rows = [torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True, materialize_grads=True) for one in losses]
    expected = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    torch.testing.assert_close(slopes(losses, parameters), expected, atol=1e-12, rtol=0)


def test_ranked_goes_from_most_for_to_most_against() -> None:
    each = torch.tensor([[[0.0, 3.0, -1.0], [1.0, 0.0, 2.0]]]).double()
    found = Contributions(each, torch.zeros(1, 2), torch.zeros(1, 2))
    assert found.ranked(0) == [(1, 3.0), (0, 0.0), (2, -1.0)]
    assert found.ranked(0, 1)[0] == (2, 2.0)


def test_scalar_outputs_may_have_one_dimension() -> None:
    inputs, targets, watched = data()
    found = descend(net(), inputs, targets, watched, loss=likelihood, rate=0.1, steps=3, read=lambda model, x: model(x)[:, 1])
    both = descend(net(), inputs, targets, watched, loss=likelihood, rate=0.1, steps=3)
    torch.testing.assert_close(found.each[:, 0], both.each[:, 1], atol=1e-12, rtol=0)


# Refusals

@pytest.mark.parametrize(("make", "says"), [
    (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum=0.9"),
    (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01), "weight_decay=0.01"),
    (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "momentum"),
    (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "maximize"),
    (lambda p: torch.optim.Adam(p), "Adam isn't plain"),
    (lambda p: derive(torch.optim.SGD(p, lr=0.1), [WeightDecay(0.1)]), "WeightDecay"),
])  # fmt: skip
def test_other_optimizers_are_refused_by_name(make, says) -> None:
    model = net()
    with pytest.raises(ConfigError, match=says):
        Path(model, make(list(model.parameters())), data()[2], examples=EXAMPLES)


def test_momentum_would_break_the_sum() -> None:
    """Why it is refused: the same linear model, whose sum is exact without."""
    inputs, targets, watched = data()
    model = nn.Linear(INPUTS, CLASSES).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = Path(model, optimizer, watched, examples=EXAMPLES)
    optimizer.param_groups[0]["momentum"] = 0.9                        # planted behind its back
    for _ in range(9):
        path.step(likelihood(model(inputs), targets), range(EXAMPLES))
    assert path.contributions().error.abs().max() > 0.1


def test_batches_that_cannot_be_are_refused() -> None:
    inputs, targets, watched = data()
    model = net()
    path = Path(model, torch.optim.SGD(model.parameters(), lr=0.1), watched, examples=EXAMPLES)
    losses = likelihood(model(inputs[:2]), targets[:2])
    for given, chosen in ((losses, [1]), (losses, [1, EXAMPLES]), (losses.mean(), [1]), (losses[:0], [])):
        with pytest.raises(DataError):
            path.step(given, chosen)
    with pytest.raises(ConfigError, match="no parameter"):
        path.step(losses.detach(), [0, 1])
    with pytest.raises(DataError, match="shape"):
        Path(model, torch.optim.SGD(model.parameters(), lr=0.1), watched, examples=2, read=lambda network, x: network(x).sum())
