"""SimSiam's parts: the loss against its formula, where gradients go, BYOL's target, views, signs of collapse, neighbours, training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fishpaw.lab.self_supervised import (
    VARIANTS,
    Network,
    augmented,
    channel_std,
    effective_rank,
    follow,
    nearest,
    negative_cosine,
    objective,
    train,
)  # fmt: skip

torch.set_num_threads(1)


def small(**options) -> Network:
    torch.manual_seed(3)
    return Network(width=2, size=13, bottleneck=5, **options).double()


def views() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    one, two = torch.rand(2, 11, 3, 8, 8, dtype=torch.float64, generator=draw)
    return one, two


def test_negative_cosine_is_its_formula_and_ignores_lengths() -> None:
    p, z = torch.randn(2, 7, 5, dtype=torch.float64)
    assert negative_cosine(p, z).item() == pytest.approx(-cosine_similarity(p, z).mean().item(), abs=1e-12)
    assert negative_cosine(3 * p, 0.1 * z).item() == pytest.approx(negative_cosine(p, z).item(), abs=1e-12)
    assert negative_cosine(p, 2 * p).item() == pytest.approx(-1) and negative_cosine(p, -p).item() == pytest.approx(1)


def test_simsiam_is_its_formula() -> None:
    network, (one, two) = small(), views()
    z1, z2 = network(one), network(two)
    p1, p2 = network.predictor(z1), network.predictor(z2)
    loss, z = objective("simsiam", network, (one, two))
    assert loss.item() == pytest.approx((negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2).item(), abs=1e-12)
    assert z.shape == (11, 13) and not z.requires_grad
    assert objective("simsiam", network, (two, one))[0].item() == pytest.approx(loss.item(), abs=1e-12)       # symmetric in the views


def test_stopping_changes_gradients_and_not_the_loss() -> None:
    network = small()
    (stopped, _), (whole, _) = (objective(name, network, views()) for name in ("simsiam", "no stop-gradient"))
    assert stopped.item() == whole.item()
    one, other = (torch.autograd.grad(loss, network.encoder[0].weight)[0] for loss in (stopped, whole))
    assert (one - other).abs().max() > 1e-3


def test_byol_draws_to_its_target_whose_weights_get_no_gradient() -> None:
    network, target = small(), small()
    with torch.no_grad():
        for weight in target.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    loss, _ = objective("byol", network, views(), target=target)
    loss.backward()
    assert all(weight.grad is None for weight in target.parameters()) and network.encoder[0].weight.grad is not None
    assert loss.item() != objective("simsiam", network, views())[0].item()
    for name in ("byol", "mean of views"):
        with pytest.raises(ValueError, match=name):
            objective(name, network, views())


def test_a_target_follows_by_its_momentum() -> None:
    network, target = small(), small()
    with torch.no_grad():
        network.encoder[0].weight.fill_(1.0)
        target.encoder[0].weight.fill_(0.0)
    network(views()[0])                                              # moves the running statistics
    behind = copy.deepcopy(target)
    follow(behind, network, 0.75)
    torch.testing.assert_close(behind.encoder[0].weight, torch.full_like(behind.encoder[0].weight, 0.25))
    follow(target, network, 0.0)
    for mine, other in zip(target.state_dict().values(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_the_mean_of_views_is_the_target_of_both() -> None:
    network, (one, two) = small(), views()
    loss, _ = objective("mean of views", network, (one, two), mean=(one + two) / 2)
    centre = network((one + two) / 2)
    expected = (negative_cosine(network(one), centre) + negative_cosine(network(two), centre)) / 2
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_normed_heads_centre_z_and_plain_ones_do_not() -> None:
    one, _ = views()
    assert small()(one).mean(0).abs().max() < 1e-12 < 1e-3 < small(heads="plain")(one).mean(0).abs().max()


def test_views_are_random_stay_in_range_and_come_again_with_the_seed() -> None:
    pixels = torch.rand(64, 3, 8, 8)
    one, again, other = (augmented(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == pixels.shape and 0 <= float(one.min()) and float(one.max()) <= 1
    assert torch.equal(one, again) and (one - other).abs().mean() > 0.05


def test_without_chance_a_view_is_the_image_or_its_mirror() -> None:
    """least = 1 leaves crops of full area; where the ratio makes one side longer than the image it is cut, so images of rows tell."""
    pixels = torch.rand(64, 3, 1, 8).expand(-1, -1, 8, -1)            # the same in each row: a cut of rows is unseen
    views = augmented(pixels, torch.Generator().manual_seed(0), least=1, jitter=0, grey=0)
    flat = [min((view - pixel).abs().max(), (view - pixel.flip(-1)).abs().max()) for view, pixel in zip(views, pixels, strict=True)]
    whole = [float(one) < 1e-5 for one in flat]
    assert 10 < sum(whole) < 54                                      # those whose width isn't cut: half of them
    mirrored = [bool((view - pixel.flip(-1)).abs().max() < 1e-5) for view, pixel in zip(views, pixels, strict=True)]
    assert 0 < sum(mirrored) < sum(whole)


def test_grey_views_have_equal_channels() -> None:
    view = augmented(torch.rand(7, 3, 8, 8), torch.Generator().manual_seed(0), jitter=0, grey=1)
    torch.testing.assert_close(view[:, 0], view[:, 1], atol=1e-6, rtol=0)


def test_signs_of_collapse() -> None:
    draw = torch.Generator().manual_seed(0)
    spread, point = torch.randn(997, 31, generator=draw), torch.randn(1, 31, generator=draw)
    line = torch.where(torch.arange(997)[:, None] % 2 == 0, 1.0, -1.0) * point
    assert channel_std(spread) * math.sqrt(31) == pytest.approx(1, abs=0.02)        # 31 channels, each known to 1 / sqrt(2 x 997)
    assert channel_std(point.expand(997, 31)) < 1e-6
    assert channel_std(line) * math.sqrt(31) > 0.6 and effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert 29 < effective_rank(spread) <= 31
    assert effective_rank(point.expand(997, 31)) <= 31               # nothing but rounding: a number all the same
    assert channel_std(5 * spread) == pytest.approx(channel_std(spread), rel=1e-5)


def test_neighbours_vote_as_a_loop_says() -> None:
    draw = torch.Generator().manual_seed(0)
    bank, labels, queries = torch.randn(41, 5, generator=draw), torch.randint(3, (41,), generator=draw), torch.randn(13, 5, generator=draw)
    expected = []
    for query in queries:
        near = sorted(((float(cosine_similarity(query, one, dim=0)), int(label)) for one, label in zip(bank, labels, strict=True)))[-7:]
        votes = [sum(math.exp(cosine / 0.1) for cosine, label in near if label == kind) for kind in range(3)]
        expected.append(votes.index(max(votes)))
    assert nearest(bank, labels, queries, k=7).tolist() == expected
    assert nearest(bank, labels, bank, k=1).tolist() == labels.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_trains_and_gives_the_same_twice(variant) -> None:
    def once() -> tuple[tuple[float, ...], ...]:
        torch.manual_seed(0)
        network = Network(width=2, size=13, bottleneck=5, heads="plain" if "plain" in variant else "normed")
        before = network.encoder[0].weight.clone()
        course = train(network, torch.rand(35, 3, 8, 8, generator=torch.Generator().manual_seed(1)), variant, epochs=2, batch=16, rate=0.1,
                       decay=1e-4, momentum=0.9, views=3, generator=torch.Generator().manual_seed(2), tell=lines.append)  # fmt: skip
        assert (network.encoder[0].weight - before).abs().max() > 1e-4
        return course.losses, course.spread, course.rank

    lines: list[str] = []
    first = once()
    assert first == once() and all(len(one) == 2 for one in first) and len(lines) == 4 and variant in lines[0]


def test_byol_whose_target_follows_at_once_trains_as_simsiam() -> None:
    """Also a network that rests when training begins, as one whose features were just judged: the target's BatchNorm reads the batch."""
    def losses(variant) -> tuple[float, ...]:
        torch.manual_seed(0)
        network = Network(width=2, size=13, bottleneck=5).eval()
        pixels = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return train(network, pixels, variant, epochs=2, batch=16, rate=0.1, decay=1e-4, momentum=0.0, views=2,
                     generator=torch.Generator().manual_seed(2), tell=lambda line: None).losses  # fmt: skip

    assert losses("byol") == pytest.approx(losses("simsiam"), abs=1e-5)            # fp32; the target is computed apart


def test_training_brings_views_together_and_without_stop_gradient_plain_heads_collapse() -> None:
    """Sixty steps on 32 noise images: the loss falls; and, planted, the spread of z goes where nothing holds it."""
    def spread(variant, heads) -> tuple[float, float, float]:
        torch.manual_seed(0)
        network = Network(width=2, size=13, bottleneck=5, heads=heads)
        course = train(network, torch.rand(32, 3, 8, 8), variant, epochs=60, batch=32, rate=0.1, decay=0.0, momentum=0.9, views=2,
                       generator=torch.Generator().manual_seed(2), tell=lambda line: None)  # fmt: skip
        return course.losses[0], course.losses[-1], course.spread[-1]

    begin, end, kept = spread("simsiam", "normed")
    assert end < begin - 0.2 and kept > 0.8
    _, least, gone = spread("no stop-gradient, plain heads", "plain")
    assert least < -0.95 and gone < 0.1
