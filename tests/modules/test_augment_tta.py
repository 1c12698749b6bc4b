"""Test-time augmentation: an average over views, whatever the batch, that leaves the model as it was."""

import numpy as np
import pytest
import torch
from augment_helpers import pictures
from helpers import quiet_trainer, run_ranks
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.data.augment import Brightness, HorizontalFlip, Translate
from lightning_tricks.plots import plot_augmented


def model():
    torch.manual_seed(0)
    return lt.Classifier(lt.ConvNet(3, 4, channels=(6,), dropout=0.3), num_classes=4)


def views():
    return lt.BatchAugment([HorizontalFlip(), Translate(0.2)], seed=3)


def test_the_mean_is_over_the_views():
    net, x = model(), pictures(5) / 255
    out = lt.TTAPredictor(net, views(), samples=3).predict_step(x)
    net.eval()
    with torch.no_grad():
        each = [net(x).softmax(1)]
        for number in (1, 2):
            seen = views()(x, index=torch.zeros(5, dtype=int), epoch=number, normalized=True).images
            each.append(net(seen).softmax(1))
    expected = torch.stack(each)
    torch.testing.assert_close(out["mean"], expected.mean(0))
    torch.testing.assert_close(out["std"], expected.std(0))
    assert torch.equal(out["label"], expected.mean(0).argmax(1))
    assert not torch.allclose(expected[0], expected[1])


def test_a_symmetric_model_changes_nothing():
    class Mean(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    x = pictures(4) / 255
    flips = lt.BatchAugment([HorizontalFlip()])
    out = lt.TTAPredictor(Mean(), flips, samples=6, task="multiclass").predict_step(x)
    torch.testing.assert_close(out["mean"], Mean()(x).softmax(1))
    assert out["std"].max() < 1e-6


def test_modes_weights_and_global_streams_are_kept():
    net = model().train()
    net.net.features[0].eval()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    before = torch.get_rng_state()
    lt.TTAPredictor(net, views()).predict_step(pictures(3) / 255)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def predict(rank, batch_size, devices):
    data = TensorDataset(pictures(11) / 255)
    trainer = quiet_trainer(strategy="ddp" if devices > 1 else "auto", devices=devices)
    out = trainer.predict(lt.TTAPredictor(model(), views(), samples=4), DataLoader(data, batch_size))
    index = torch.cat([part["index"] for part in out])
    return dict(zip(index.tolist(), torch.cat([part["mean"] for part in out]).numpy(), strict=True))


def test_batches_and_ranks_make_no_difference():
    whole = predict(0, 11, 1)
    assert sorted(whole) == list(range(11))
    for found in (predict(0, 3, 1), *run_ranks(predict, 3, 2)):
        for row, mean in found.items():
            np.testing.assert_allclose(mean, whole[row], atol=1e-6)


def test_colours_need_the_statistics():
    x = pictures(2) / 255
    augment = lt.BatchAugment([Brightness()])
    with pytest.raises(UserInputError, match="need the mean and std"):
        lt.TTAPredictor(model(), augment).predict_step(x)
    ready = lt.BatchAugment([Brightness()], mean=0.5, std=0.25)
    assert lt.TTAPredictor(model(), ready).predict_step((x - 0.5) / 0.25)["mean"].shape == (2, 4)


def test_other_batches_get_a_sentence():
    with pytest.raises(UserInputError, match="one tensor of pictures"):
        lt.TTAPredictor(model(), views()).predict_step(torch.rand(3, 5))
    with pytest.raises(UserInputError, match="samples must be in"):
        lt.TTAPredictor(model(), views(), samples=1)


def test_the_picture_has_a_row_per_picture_and_a_column_per_draw():
    x = pictures(2).numpy()
    figure = plot_augmented(x, [x / 255, 1 - x / 255], ["same", "inverse"])
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert len(shown) == 6
    np.testing.assert_allclose(shown[0], shown[1], atol=1e-6)
    np.testing.assert_allclose(shown[3] + shown[5], 1, atol=1e-6)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["original", "same", "inverse"]
