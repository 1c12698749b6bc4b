"""Whose picture it is decides how it looks: batch, order, worker, rank, resume and the rest of the list do not."""

import pickle

import numpy as np
import pytest
import torch
from augment_helpers import pictures
from helpers import quiet_trainer, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_tricks._base import UserInputError, rng_state
from lightning_tricks.data.augment import (
    AugmentCollate,
    AutoContrast,
    BatchAugment,
    Brightness,
    Contrast,
    Crop,
    CutMix,
    Equalize,
    Erase,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    HorizontalFlip,
    Hue,
    HueHSV,
    KeyedDataset,
    KeyedSampler,
    MixUp,
    Perspective,
    Posterize,
    RandAugment,
    RandomResizedCrop,
    Rotate,
    Saturation,
    Scale,
    Sharpness,
    Shear,
    Solarize,
    Translate,
    TrivialAugment,
    VerticalFlip,
)
from lightning_tricks.data.augment._keys import sample_keys, uniforms

EVERY_OP = {
    "AutoContrast": AutoContrast(p=0.5),
    "Brightness": Brightness(),
    "Contrast": Contrast(),
    "Crop": Crop(2),
    "Equalize": Equalize(p=0.5),
    "Erase": Erase(p=0.8),
    "GaussianBlur": GaussianBlur(3),
    "GaussianNoise": GaussianNoise(),
    "GaussianNoiseExact": GaussianNoise(source="exact"),
    "Grayscale": Grayscale(p=0.5),
    "HorizontalFlip": HorizontalFlip(),
    "Hue": Hue(),
    "HueHSV": HueHSV(),
    "Perspective": Perspective(p=0.8),
    "Posterize": Posterize(3, p=0.5),
    "RandAugment": RandAugment(2, magnitude=15),
    "RandomResizedCrop": RandomResizedCrop(10),
    "Rotate": Rotate(),
    "Saturation": Saturation(),
    "Scale": Scale(),
    "Sharpness": Sharpness(),
    "Shear": Shear(),
    "Solarize": Solarize(p=0.5),
    "Translate": Translate(),
    "TrivialAugment": TrivialAugment(),
    "VerticalFlip": VerticalFlip(),
}
LIST = [
    HorizontalFlip(),
    Crop(2),
    Rotate(),
    Brightness(),
    Contrast(),
    Hue(),
    GaussianNoise(),
    Solarize(p=0.3),
    GaussianBlur(3),
    Erase(p=0.5),
]
N = 12


def samples():
    return pictures(N, 3, 18, 16)  # pixels enough for levels to be spread


@pytest.fixture(scope="module")
def images():
    return samples()


def run(augment, images, index, epoch=0, **targets):
    index = torch.as_tensor(index)
    return augment(images[index], index=index, epoch=epoch, **targets).images


@pytest.mark.parametrize("name", EVERY_OP)
def test_split_and_order_of_the_batch_make_no_difference(name, images):
    augment = BatchAugment([EVERY_OP[name]], seed=3)
    whole = run(augment, images, range(N))
    order = torch.randperm(N)
    assert torch.equal(run(augment, images, order), whole[order])
    parts = [run(augment, images, part) for part in (range(1), range(1, 7), range(7, N))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", EVERY_OP)
def test_epoch_seed_and_index_make_a_difference(name, images):
    same = images[1:2].expand(N, -1, -1, -1)  # one picture N times: whatever differs comes from the draw
    out = BatchAugment([EVERY_OP[name]], seed=3)(same, index=torch.arange(N), epoch=0).images
    assert len(out.flatten(1).unique(dim=0)) > 1
    for seed, epoch in ((4, 0), (3, 1)):
        other = BatchAugment([EVERY_OP[name]], seed=seed)(same, index=torch.arange(N), epoch=epoch).images
        assert not torch.equal(other, out)


@pytest.mark.parametrize("name", EVERY_OP)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_input_global_streams_and_range_are_kept(name, dtype, images):
    x = images if dtype == torch.uint8 else (images / 255).to(dtype)
    before, streams = x.clone(), rng_state()
    out = BatchAugment([EVERY_OP[name]])(x, index=torch.arange(N), epoch=0).images
    assert torch.equal(x, before)
    assert out.dtype == torch.float32
    assert out.data_ptr() != x.data_ptr()
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6  # the four weights of a bilinear pixel may add up to a bit more than 1
    after = rng_state()
    assert torch.equal(streams["torch"], after["torch"])
    assert torch.equal(streams["numpy"][1], after["numpy"][1])
    assert streams["python"] == after["python"]


@pytest.mark.parametrize("name", EVERY_OP)
def test_nothing_waits_for_the_device(name, images):
    if name == "GaussianNoiseExact":
        pytest.skip("on the CPU it reads the seeds, where reading costs nothing; on a device it counts")
    # A tensor without storage cannot be read: .item(), a branch on a value or a data-dependent shape raises.
    augment = BatchAugment([EVERY_OP[name], MixUp(), CutMix()], num_classes=3, mean=0.5, std=0.5)
    x, index, labels = images.to("meta"), torch.arange(N, device="meta"), torch.zeros(N, dtype=int, device="meta")
    out = augment(x, index=index, epoch=index, labels=labels)
    assert out.images.is_meta
    assert out.labels.shape == (N, 3)


def test_targets_do_not_wait_for_the_device(images):
    augment = BatchAugment([HorizontalFlip(), Perspective()])
    out = augment(
        images.to("meta"),
        index=torch.arange(N, device="meta"),
        epoch=0,
        masks=images[:, 0].to("meta"),
        boxes=torch.zeros(N, 2, 4, device="meta"),
        keypoints=torch.zeros(N, 5, 2, device="meta"),
    )
    assert out.boxes.shape == (N, 2, 4)


def test_chunks_make_no_difference(images, monkeypatch):
    augment = BatchAugment(LIST, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    whole = run(augment, images, range(N))
    monkeypatch.setattr("lightning_tricks.data.augment._augment._CHUNK", 5 * images[0].numel())
    torch.testing.assert_close(run(augment, images, range(N)), whole, atol=1e-6, rtol=0)


def test_autocast_does_not_round_pictures(images):
    augment = BatchAugment(LIST, mean=0.5, std=0.25)
    whole = run(augment, images, range(N))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(augment, images, range(N)), whole)


@pytest.mark.parametrize("ops", [*([op] for op in EVERY_OP.values()), [GaussianNoise(), Rotate()]], ids=repr)
def test_layout_in_memory_makes_no_difference(ops, images):
    augment = BatchAugment(ops)
    for x in (images, images / 255):
        turned = x.transpose(2, 3).contiguous().transpose(2, 3)
        last = x.contiguous(memory_format=torch.channels_last)
        expected = augment(x, index=torch.arange(N), epoch=0).images
        for other in (turned, last):
            out = augment(other, index=torch.arange(N), epoch=0).images
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_it_travels_to_spawned_workers_and_is_empty_handed(images):
    augment = BatchAugment(LIST, mean=0.5, std=0.5, seed=2)
    again = pickle.loads(pickle.dumps(augment))
    assert torch.equal(run(again, images, range(N)), run(augment, images, range(N)))
    assert run(augment, images, torch.arange(0)).shape == (0, 3, 18, 16)


def test_prediction_first_does_not_spoil_training(images):
    """Constants that are made under inference mode must serve under autograd."""
    augment = BatchAugment([Rotate(21.5), Brightness(0.123), Hue(0.0321), GaussianNoise(0.0123)], mean=0.321, std=0.456)
    with torch.inference_mode():
        expected = run(augment, images, range(N))
    weight = torch.ones(1, requires_grad=True)
    out = run(augment, images, range(N))
    (out * weight).sum().backward()
    assert torch.equal(out, expected)
    assert not out.is_inference()


def test_later_operations_do_not_change_earlier_ones(images):
    short = BatchAugment([Rotate(), Brightness()]).plan(torch.arange(N), 0, images.shape)
    long = BatchAugment([Rotate(), Brightness(), GaussianNoise(), MixUp()]).plan(torch.arange(N), 0, images.shape)
    for (_, a), (_, b) in zip(short.steps, long.steps, strict=False):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_normalising_and_its_absence_agree(images):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    for ops in (LIST, LIST[:7], LIST[:2], LIST[3:4], [*LIST, Hue()], []):
        plain = run(BatchAugment(ops), images, range(N))
        folded = run(BatchAugment(ops, mean=mean, std=std), images, range(N))
        expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(folded, expected, atol=2e-5, rtol=0)


def test_normalised_pictures_can_come_in(images):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    augment = BatchAugment([HorizontalFlip(), Brightness(), Solarize(p=0.5), GaussianNoise()], mean=mean, std=std)
    index = torch.arange(N)
    expected = augment(images, index=index, epoch=0).images
    ready = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    again = augment(ready, index=index, epoch=0, normalized=True).images
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=0)


def test_bytes_and_floats_agree(images):
    augment = BatchAugment(LIST)
    floats = augment(images / 255, index=torch.arange(N), epoch=0).images
    torch.testing.assert_close(floats, run(augment, images, range(N)), atol=1e-5, rtol=0)


@given(st.integers(-(2**40), 2**40), st.integers(0, 10**6), st.integers(0, 2**48), st.integers(0, 5000))
@settings(max_examples=50, deadline=None)
def test_keys_are_splitmix64(seed, epoch, index, slot):
    from lightning_tricks._base import derive_seed

    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mixed(z):
        z &= mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    key = mixed(mixed(epoch * golden + derive_seed("augment", seed)) + index * golden)
    word = mixed(key + (slot + 1) * golden)
    for kind in (epoch, torch.tensor([epoch])):
        keys = sample_keys(seed, kind, torch.tensor([index]))
        assert int(keys) & mask == key
        assert float(uniforms(keys, [slot])) == (word >> 40) / 2**24


def test_draws_are_uniform_and_independent():
    from scipy.stats import kstest

    u = uniforms(sample_keys(0, 0, torch.arange(4000)), range(12))
    for column in u.T:
        assert kstest(column.numpy(), "uniform").pvalue > 1e-3
    assert torch.corrcoef(u.T).fill_diagonal_(0).abs().max() < 5 / np.sqrt(4000)
    over_epochs = uniforms(sample_keys(0, torch.arange(4000), torch.full((4000,), 7)), [0])
    assert kstest(over_epochs[:, 0].numpy(), "uniform").pvalue > 1e-3


def loader(augment, workers, *, shuffle=False, batch_size=4):
    data = TensorDataset(samples(), torch.arange(N))
    inner = torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(0)) if shuffle else range(N)
    return DataLoader(
        KeyedDataset(data),
        batch_size,
        sampler=KeyedSampler(inner),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=AugmentCollate(augment),
        multiprocessing_context="fork" if workers else None,
    )


def epochs(batches, count):
    """Return the pictures of several epochs, each in the order of the dataset."""
    out = []
    for epoch in range(count):
        batches.sampler.set_epoch(epoch)
        parts = list(batches)
        labels = torch.cat([y for _, y in parts])
        out.append(torch.cat([x for x, _ in parts])[labels.argsort()])
    return out


def test_persistent_workers_see_the_epoch_and_change_nothing(images):
    augment = BatchAugment(LIST, seed=1)
    expected = [run(augment, images, range(N), epoch) for epoch in range(2)]
    assert not torch.equal(*expected)
    for workers, shuffle, batch_size in ((0, True, 5), (2, True, 4), (1, False, 1)):
        found = epochs(loader(augment, workers, shuffle=shuffle, batch_size=batch_size), 2)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


class Recorder(LightningModule):
    """Keeps the pictures that training saw: ``(index, epoch) -> picture``."""

    def __init__(self, augment=None):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.augment = augment
        self.seen = {}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.augment is None:
            return batch
        (x, y), index, epoch = batch
        if self.trainer.training:
            x = self.augment(x, index=index, epoch=epoch).images
        return x, y

    def training_step(self, batch, batch_idx):
        x, y = batch
        for picture, label in zip(x, y.tolist(), strict=True):
            self.seen[label, self.current_epoch] = picture.numpy().copy()
        return self.net(x.mean().view(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit_in_rank(rank):
    data = TensorDataset(samples(), torch.arange(N))
    sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=True)
    batches = DataLoader(
        KeyedDataset(data), 3, sampler=KeyedSampler(sampler), collate_fn=AugmentCollate(BatchAugment(LIST, seed=1))
    )
    model = Recorder()
    trainer = quiet_trainer(strategy="ddp", devices=2, max_epochs=2, use_distributed_sampler=False)
    trainer.fit(model, batches)
    return model.seen


def test_two_ranks_see_the_pictures_of_one_process(images):
    augment = BatchAugment(LIST, seed=1)
    expected = [run(augment, images, range(N), epoch).numpy() for epoch in range(2)]
    ranks = run_ranks(fit_in_rank)
    assert sorted([*ranks[0], *ranks[1]]) == [(label, epoch) for label in range(N) for epoch in range(2)]
    for seen in ranks:
        for (label, epoch), picture in seen.items():
            np.testing.assert_allclose(picture, expected[epoch][label], atol=1e-6)


def test_a_resumed_run_sees_the_same_pictures(tmp_path, images):
    augment = BatchAugment(LIST, seed=1)
    whole = Recorder()
    quiet_trainer(max_epochs=3).fit(whole, loader(augment, 0))
    first = quiet_trainer(max_epochs=1)
    first.fit(Recorder(), loader(augment, 0))
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Recorder()
    quiet_trainer(max_epochs=3).fit(resumed, loader(augment, 0), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert {epoch for _, epoch in resumed.seen} == {1, 2}
    for key, picture in resumed.seen.items():
        np.testing.assert_array_equal(picture, whole.seen[key])


class BareValidation(Recorder):
    """Demands that validation gets the bytes as they are."""

    def validation_step(self, batch, batch_idx):
        assert batch[0].dtype == torch.uint8


def test_on_the_device_only_training_is_augmented(images):
    """The hook's `trainer.training` keeps the sanity check and validation bare."""
    data = KeyedDataset(TensorDataset(images, torch.arange(N)))
    model = BareValidation(BatchAugment(LIST, seed=1))
    train = DataLoader(data, 4, sampler=KeyedSampler(range(N)))
    quiet_trainer(num_sanity_val_steps=2).fit(model, train, DataLoader(data, 4))
    np.testing.assert_allclose(model.seen[5, 0], run(model.augment, images, range(N))[5].numpy(), atol=1e-6)


def test_where():
    assert BatchAugment([]).place("cpu") == "worker"
    assert BatchAugment([]).place("cuda:1") == "device"
    assert BatchAugment([], where="device").place("cpu") == "device"
    assert BatchAugment([], where="worker").place("cuda") == "worker"


def test_defaults_fill_gaps_only():
    given_ = BatchAugment([MixUp()], mean=0.1, std=0.2, seed=5, padding="border", mask_fill=9)
    filled = given_.with_defaults(mean=[0.5] * 3, std=[0.5] * 3, num_classes=7)
    assert (filled.mean, filled.std, filled.num_classes) == ((0.1,), (0.2,), 7)
    assert (filled.seed, filled.padding, filled.mask_fill, filled.ops) == (5, "border", 9, given_.ops)
    assert BatchAugment([]).with_defaults(mean=[0.5], std=[0.25]).std == (0.25,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchAugment(["flip"]), "takes operations .* but got 'flip'"),
        (lambda: BatchAugment([MixUp(), Rotate()]), "must come last in the list, but Rotate follows one"),
        (lambda: BatchAugment([], where="gpu"), "where must be one of auto, device, worker, but got 'gpu'"),
        (lambda: BatchAugment([], mean=0.5), "mean and std come together"),
        (lambda: BatchAugment([], mean=0.5, std=0.0), "std above 0"),
        (lambda: BatchAugment([], padding="zero"), "padding must be one of .* Did you mean 'zeros'"),
        (lambda: Rotate(200), r"degrees must be in \[0, 180\], but got 200"),
        (lambda: HorizontalFlip(1.5), r"p must be in \[0, 1\], but got 1.5"),
        (lambda: Scale((1.2, 0.8)), "factor must be .*smallest <= largest"),
        (lambda: Crop(size=(3, 0)), "each at least 1 pixel"),
        (lambda: GaussianBlur(4), "kernel_size must be odd"),
        (lambda: RandAugment(0), r"rounds must be in \[1, 16\]"),
        (lambda: Posterize(0), r"bits must be in \[1, 8\]"),
    ],
)
def test_bad_settings_get_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()


def test_bad_batches_get_a_sentence(images):
    index = torch.arange(N)
    augment = BatchAugment([HorizontalFlip()])
    with pytest.raises(UserInputError, match=r"images must be uint8 .* got torch.int64"):
        augment(images.long(), index=index, epoch=0)
    with pytest.raises(UserInputError, match=r"index must be int64 \(B,\).*got torch.float32"):
        augment(images, index=index.float(), epoch=0)
    with pytest.raises(UserInputError, match="the plan is for 3 pictures"):
        augment(images, index=index[:3], epoch=0)
    with pytest.raises(UserInputError, match="mean and std are given for 2 channels"):
        BatchAugment([], mean=(0.5, 0.5), std=(1, 1))(images, index=index, epoch=0)
    with pytest.raises(UserInputError, match="window no larger than the padded picture"):
        BatchAugment([Crop(0, size=99)])(images, index=index, epoch=0)
    with pytest.raises(UserInputError, match="Choose a smaller kernel_size"):
        BatchAugment([GaussianBlur(41)])(images, index=index, epoch=0)
    with pytest.raises(UserInputError, match=r"boxes must be \(B, N, 4\)"):
        augment(images, index=index, epoch=0, boxes=torch.zeros(N, 4))
    with pytest.raises(UserInputError, match=r"must end in channels, height and width, but got \(8, 8\)"):
        augment.plan(index, 0, (8, 8))
    with pytest.raises(UserInputError, match=r"a value for each of 4 channels, but pictures have 3"):
        BatchAugment([Erase(1.0, value=(0.1, 0.2, 0.3, 0.4))])(images, index=index, epoch=0)
    with pytest.raises(
        UserInputError, match=r"expects samples that are an image or .*, but the collated batch is a dict"
    ):
        AugmentCollate(augment)([({"x": images[0]}, 0, 0)])


def test_collate_takes_bare_pictures_and_keys_have_the_length_of_their_sampler(images):
    augment = BatchAugment([HorizontalFlip(0.5)], seed=3)
    out = AugmentCollate(augment)([(images[i], i, 2) for i in range(N)])
    assert torch.equal(out, augment(images, index=torch.arange(N), epoch=2).images)
    assert len(KeyedSampler(range(5))) == 5
    with pytest.raises(TypeError, match="generator has no length"):
        len(KeyedSampler(i for i in range(5)))


def test_colours_and_edges_that_are_not_there_stay(images):
    grey, index = images[:, :1], torch.arange(N)
    assert torch.equal(
        BatchAugment([Hue(0.4)], seed=0)(grey, index=index, epoch=0).images,
        BatchAugment([])(grey, index=index, epoch=0).images,
    )
    thin = images[..., :2].contiguous()
    plain = BatchAugment([])(thin, index=index, epoch=0).images
    assert torch.equal(BatchAugment([Sharpness(0.5)], seed=0)(thin, index=index, epoch=0).images, plain)


def test_an_augmentation_says_what_it_does():
    assert (
        repr(BatchAugment([HorizontalFlip(0.5)], seed=4))
        == "BatchAugment([HorizontalFlip(p=0.5)], seed=4, where='auto')"
    )
