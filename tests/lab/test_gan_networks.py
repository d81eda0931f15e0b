"""Generators and discriminators: shapes, a naive count of their costs, what modulation and spectral norm do, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fishpaw.errors import ConfigError
from fishpaw.lab.gan_networks import AdaIN, Cost, Dcgan, Plain, SelfMod, cost, discriminator, generator, residual_discriminator

torch.set_num_threads(1)
NAMES = ("dcgan", "resnet", "self-mod", "self-mod resnet")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [8, 32])
def test_images_have_the_side_that_was_asked_for_and_lie_between_minus_one_and_one(name: str, side: int) -> None:
    network = generator(name, side=side, channels=3, size=5, width=3)
    image = network(torch.randn(7, 5))
    assert image.shape == (7, 3, side, side) and image.abs().max() <= 1
    image.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("build", [discriminator, residual_discriminator])
def test_a_discriminator_gives_one_score_an_image_and_its_matrices_have_norm_one(build) -> None:
    network = build(side=16, channels=3, width=2)
    for _ in range(60):
        score = network(torch.randn(3, 3, 16, 16))
    assert score.shape == (3, 1)
    network.eval()
    weights = [module.weight.detach().flatten(1) for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert len(weights) >= 3
    for weight in weights:
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-2)          # close singular values converge slowly


def test_weights_begin_small_and_biases_at_zero() -> None:
    network = generator("dcgan", side=32, size=64, width=16)
    assert network.first.weight.std().item() == pytest.approx(0.02, rel=0.05) and network.first.bias.abs().max() == 0
    assert network.ups[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.ups[-1].weight.std().item() == pytest.approx(1 / 8, rel=0.2)                  # 16 channels x 4 taps; 256 numbers
    assert [(up.in_channels, up.out_channels) for up in network.ups] == [(64, 32), (32, 16), (16, 1)]


def test_the_cost_of_dcgan_is_that_counted_by_hand() -> None:
    side, channels, size, width = 16, 3, 5, 2
    found = cost(generator("dcgan", side=side, channels=channels, size=size, width=width), (size,))
    dense, up1, up2 = size * 64 + 64, 4 * 2 * 16 + 2, 2 * 3 * 16 + 3                              # 4 channels at 4 x 4, then 2, then 3
    norms = 2 * 4 + 2 * 2
    multiply_adds = size * 64 + 16 * 4 * 2 * 16 + 64 * 2 * 3 * 16                                # each input place x kernel x channels
    activations = 64 + 16 * 4 + 64 * 2 + 64 * 2 + 256 * 3                                        # dense, norm, up, norm, up
    assert found == Cost(dense + up1 + up2 + norms, multiply_adds, activations)


@pytest.mark.parametrize("build, shape", [
    *((lambda name=name: generator(name, side=16, size=5, width=2), (5,)) for name in NAMES),
    (lambda: discriminator(side=16, width=2), (1, 16, 16)), (lambda: residual_discriminator(side=16, width=2), (1, 16, 16)),
])  # fmt: skip
def test_costs_on_the_meta_device_are_those_of_the_network_itself(build, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        imagined = build()
    network = build()
    assert cost(imagined, shape) == cost(network, shape)
    assert network.training and not any(module._forward_hooks for module in network.modules())


def test_a_discriminators_cost_counts_each_convolution_once() -> None:
    found = cost(discriminator(side=8, channels=1, width=2), (1, 8, 8))
    assert found.multiply_adds == 16 * 2 * 16 + 32 and found.parameters == 2 * 16 + 2 + 32 + 1
    assert found.activations == 32 + 32 + 32 + 1                      # convolution, LeakyReLU, flatten, dense


def test_modulation_depends_on_each_images_own_z() -> None:
    hidden, z = torch.randn(5, 7, 3, 3), torch.randn(5, 11)
    norm = SelfMod(7, 11)
    other = z.clone()
    other[2] += 1
    moved = (norm(hidden, z) - norm(hidden, other)).abs().amax((1, 2, 3)) > 1e-6
    assert moved.tolist() == [False, False, True, False, False]
    assert torch.equal(Plain(7)(hidden, z), Plain(7)(hidden, other))


def test_adain_does_not_see_the_other_images() -> None:
    hidden, z = torch.randn(5, 7, 3, 3), torch.randn(5, 11)
    for norm, alone in ((AdaIN(7, 11), True), (SelfMod(7, 11), False)):
        assert torch.allclose(norm(hidden, z)[:2], norm(hidden[:2], z[:2]), atol=1e-5) is alone


def test_self_mod_is_dcgan_with_other_norms() -> None:
    plain, modulated = generator("dcgan", width=2, size=5), generator("self-mod", width=2, size=5)
    assert isinstance(plain, Dcgan) and isinstance(modulated, Dcgan)
    assert [name for name, _ in plain.ups.named_parameters()] == [name for name, _ in modulated.ups.named_parameters()]


@pytest.mark.parametrize("call", [lambda: generator("stylegan"), lambda: generator("dcgan", side=28), lambda: discriminator(side=4),
                                  lambda: generator("resnet", side=0)])  # fmt: skip
def test_what_cannot_be_is_refused(call) -> None:
    with pytest.raises(ConfigError):
        call()
