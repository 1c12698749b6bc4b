"""Every way of writing dropout is found, is on, and has the distribution of a plain loop in training mode."""

import pytest
import torch
from mc_nets import MECHANISMS, net_and_input, plain_samples

from lightning_tricks.uncertainty import MCEngine

S = 800
# DropBlock divides by the mean of its mask over the whole batch: rows are not on their own in it.
ROWWISE = [name for name in MECHANISMS if name != "DropBlock2d"]


def standard_error(samples):
    return samples.std(0) / len(samples) ** 0.5


def variance_error(samples):
    """Squared standard error of the variance, from the fourth moment."""
    return ((samples - samples.mean(0)) ** 2).var(0) / len(samples)


@pytest.mark.parametrize("name", MECHANISMS)
def test_distribution_equals_the_plain_loops(name):
    net, x = net_and_input(name)
    s = S if name in ROWWISE else 300  # one by one
    ours = MCEngine(net, samples=s, seed=1, engine="repeat" if name in ROWWISE else "loop")(x)
    theirs = plain_samples(net, x, s)
    assert (theirs.std(0) > 0).all()
    gap = (ours.mean(0) - theirs.mean(0)).abs()
    assert (gap <= 5 * (standard_error(ours) ** 2 + standard_error(theirs) ** 2).sqrt()).all()
    ratio = ours.var(0).mean().sqrt() / theirs.var(0).mean().sqrt()
    assert 0.95 < ratio < 1.05
    assert ((ours.var(0) - theirs.var(0)).abs() <= 5 * (variance_error(ours) + variance_error(theirs)).sqrt()).all()
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_every_engine_gives_the_loops_samples(name, masks):
    net, x = net_and_input(name)
    options = {"samples": 4, "seed": 3, "masks": masks}
    loop = MCEngine(net, engine="loop", **options)(x)
    auto = MCEngine(net, **options)
    torch.testing.assert_close(auto(x), loop, rtol=1e-5, atol=1e-5)
    if name not in ROWWISE:
        return
    repeat = MCEngine(net, engine="repeat", **options)(x)
    torch.testing.assert_close(repeat, loop, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ROWWISE)
def test_samples_do_not_depend_on_the_batch(name):
    net, x = net_and_input(name)
    for masks in ("independent", "shared"):
        options = {"samples": 3, "seed": 3, "masks": masks, "engine": "loop"}
        whole = MCEngine(net, **options)(x)
        chunked = MCEngine(net, chunk_size=2, **options)(x)
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        shuffled = MCEngine(net, **options)(x[order], rows=order)
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(shuffled, whole[:, order], rtol=1e-5, atol=1e-5)
