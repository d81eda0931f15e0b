"""Losses against their formulas, the penalty against finite differences, a training that reaches its target, the classifier."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fishpaw.lab.gan_networks import discriminator, generator
from fishpaw.lab.gan_training import LOSSES, Classifier, classify, gradient_penalty, losses, samples, train

torch.set_num_threads(1)


def test_losses_are_their_formulas() -> None:
    real, fake = torch.randn(2, 7, 1, dtype=torch.float64)
    standard = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    assert losses("standard", real, fake).item() == pytest.approx(standard.item(), abs=1e-12)
    hinge = sum(max(0.0, 1 - one) for one in real.flatten().tolist()) / 7 + sum(max(0.0, 1 + one) for one in fake.flatten().tolist()) / 7
    assert losses("hinge", real, fake).item() == pytest.approx(hinge, abs=1e-12)
    assert losses("wgan-gp", real, fake).item() == pytest.approx((fake.mean() - real.mean()).item(), abs=1e-12)
    assert all(losses(name, real + 1, fake - 1) < losses(name, real, fake) for name in LOSSES)


def test_the_penalty_of_a_curved_critic_is_by_finite_differences() -> None:
    critic = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    real, fake = torch.randn(2, 3, 5, dtype=torch.float64)
    found = gradient_penalty(critic, real, fake, torch.Generator().manual_seed(1)).item()
    share = torch.rand(3, generator=torch.Generator().manual_seed(1)).double()[:, None]
    points, step = share * real + (1 - share) * fake, 1e-5
    with torch.no_grad():
        slopes = torch.stack([(critic(points + step * axis) - critic(points - step * axis))[:, 0] / (2 * step)
                              for axis in torch.eye(5, dtype=torch.float64)], -1)  # fmt: skip
    assert found == pytest.approx(((slopes.norm(dim=1) - 1) ** 2).mean().item(), abs=1e-8)


def test_the_penalty_reaches_the_critics_weights_and_not_the_images() -> None:
    critic, fake = nn.Linear(5, 1), torch.randn(3, 5, requires_grad=True)
    gradient_penalty(critic, torch.randn(3, 5), fake).backward()
    assert critic.weight.grad is not None and critic.weight.grad.abs().max() > 0 and fake.grad is None


def run(loss, steps: int = 2, *, decay: float = 0.5, every: int = 2, see=lambda step, mean: None):
    """The generator, the critic, the mean, and what was told."""
    torch.manual_seed(0)
    maker, critic = generator("dcgan", side=8, size=3, width=2), discriminator(side=8, width=2)
    lines: list[str] = []
    mean = train(maker, critic, torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(1)), size=3, steps=steps, batch=4,
                 loss=loss, rate=0.01, critic_rate=0.01, decay=decay, draw=torch.Generator().manual_seed(2), tell=lines.append, see=see,
                 every=every)  # fmt: skip
    return maker, critic, mean, lines


@pytest.mark.parametrize("loss", LOSSES)
def test_both_networks_learn_and_the_seed_decides(loss) -> None:
    (maker, critic, _, lines), (again, _, _, _) = run(loss), run(loss)
    torch.manual_seed(0)
    first, judge = generator("dcgan", side=8, size=3, width=2), discriminator(side=8, width=2)
    for one, other in ((maker, first), (critic, judge)):
        assert any((a - b).abs().max() > 1e-4 for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(maker.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(weight.requires_grad for weight in critic.parameters()) and len(lines) == 1


def test_it_is_looked_at_before_each_so_many_steps_and_at_the_end() -> None:
    seen: list[int] = []
    run("hinge", steps=5, see=lambda step, mean: seen.append(step))
    assert seen == [0, 2, 4, 5]


def test_looking_does_not_change_what_is_learned() -> None:
    def look(step: int, mean: nn.Module) -> None:
        samples(mean, torch.randn(5, 3, generator=torch.Generator().manual_seed(step)))

    (seen, _, theirs, _), (alone, _, own, _) = run("hinge", steps=5, see=look), run("hinge", steps=5)
    for one, other in ((seen, alone), (theirs, own)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_mean_is_that_of_the_generators_weights_and_statistics_after_each_step() -> None:
    generators: dict[int, dict[str, torch.Tensor]] = {}
    for steps in range(1, 5):                                          # as many steps from the same start: the state after each
        generators[steps] = {name: one.double() for name, one in run("hinge", steps=steps)[0].state_dict().items()}
    found = run("hinge", steps=4, decay=0.75)[2].module.state_dict()
    moved = 0.0
    for name in (name for name, one in found.items() if one.is_floating_point()):
        expected = generators[1][name]
        for steps in range(2, 5):
            expected = 0.75 * expected + 0.25 * generators[steps][name]
        torch.testing.assert_close(found[name].double(), expected, atol=1e-6, rtol=0)
        moved = max(moved, float((generators[4][name] - expected).abs().max())) if "running" in name else moved
    assert moved > 1e-3                                                # the last step's statistics would be found out
    last, _, mean, _ = run("hinge", steps=4, decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(mean.module.parameters(), last.parameters(), strict=True))


def test_images_all_of_one_grey_are_learned() -> None:
    """A target that is told by one number: the mean of what is made comes to it."""
    torch.manual_seed(0)
    maker, critic = generator("dcgan", side=8, size=3, width=4), discriminator(side=8, width=4)
    z = torch.randn(64, 3)
    before = abs(float(samples(maker, z).mean()) - 0.6)
    train(maker, critic, torch.full((16, 1, 8, 8), 0.6), size=3, steps=80, batch=16, loss="hinge", rate=5e-3, critic_rate=5e-3,
          decay=0.5, draw=torch.Generator().manual_seed(0), tell=lambda line: None, see=lambda step, mean: None, every=200)  # fmt: skip
    assert abs(float(samples(maker, z).mean()) - 0.6) < 0.3 < before


def test_samples_do_not_depend_on_how_they_are_cut() -> None:
    maker = run("hinge")[0]
    z = torch.randn(7, 3)
    torch.testing.assert_close(samples(maker, z, batch=3), samples(maker, z), atol=1e-6, rtol=0)
    assert not samples(maker, z).requires_grad


def test_the_classifier_learns_what_is_easy_and_its_features_are_its_last_layer_but_one() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    pixels = torch.randn(60, 1, 32, 32, generator=draw) * 0.1
    pixels[torch.arange(60), 0, 4 + 8 * labels] += 1                                            # a bright row a class
    torch.manual_seed(0)
    judge = Classifier(classes=3, width=4)
    start = copy.deepcopy(judge)

    def right(one: Classifier) -> float:
        with torch.no_grad():
            return float((one(pixels).argmax(1) == labels).double().mean())

    classify(judge, pixels, labels, epochs=25, draw=draw, batch=20)
    assert right(judge) == 1.0 > right(start)
    features: Tensor = judge.features(pixels)
    torch.testing.assert_close(judge.head(features), judge(pixels), atol=1e-6, rtol=0)
    assert features.shape == (60, 64) and not features.requires_grad
