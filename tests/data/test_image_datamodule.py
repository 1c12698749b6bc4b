"""Pictures: from every source, standardised without leaks, augmented alike everywhere; and every bad input."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from lightning_tricks import DigitsDataModule, ImageDataModule
from lightning_tricks._base import UserInputError, rng_state
from lightning_tricks.data.augment import BatchAugment, GaussianNoise, HorizontalFlip, MixUp, Rotate
from lightning_tricks.data.images._datasets import _in_memory, _labels_of

N = 60


@pytest.fixture
def images():
    return torch.randint(256, (N, 3, 8, 8), dtype=torch.uint8)


@pytest.fixture
def labels():
    return torch.arange(N) % 4


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("bee", "ant"):
        for i in range(10):
            save(tmp_path / f"root/{name}/{i}.png", generator.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return tmp_path / "root"


class Recorder(LightningModule):
    """Remembers the pictures that it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_seen, self.val_seen = [], []

    def training_step(self, batch):
        x, y = batch
        self.train_seen.append((self.trainer.current_epoch, x.clone(), y.clone()))
        return self.weight * x.mean()

    def validation_step(self, batch):
        self.val_seen.append(batch[0].clone())

    def predict_step(self, batch):
        return batch[0].clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def expected(data, images, part):
    """Return the standardised pictures of a part, the slow and obvious way."""
    train = images[data.parts["train"].rows].double() / 255
    mean, std = train.mean(dim=(0, 2, 3)), train.std(dim=(0, 2, 3), unbiased=False)
    x = images[data.parts[part].rows].double() / 255
    return (x - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("where", ["device", "worker"])
def test_pictures_are_standardised_by_the_training_part(images, labels, where):
    data = ImageDataModule.from_arrays(images, labels, where=where)
    model = Recorder()
    trainer = quiet_trainer()
    trainer.fit(model, data)
    torch.testing.assert_close(torch.cat(model.val_seen[1:]).double(), expected(data, images, "val"), atol=1e-5, rtol=0)
    predicted = torch.cat(trainer.predict(model, data))
    torch.testing.assert_close(predicted.double(), expected(data, images, "test"), atol=1e-5, rtol=0)


def test_pictures_stay_uint8_until_they_are_on_the_device(images, labels):
    data = ImageDataModule.from_arrays(images, labels, where="device", augment="standard")
    x, y, keys = next(iter(data.train_dataloader()))
    assert (x.dtype, y.dtype, keys.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert torch.equal(x, images[keys[:, 0]])
    assert next(iter(data.val_dataloader()))[0].dtype == torch.uint8


def test_statistics_do_not_see_the_other_parts(images, labels):
    data = ImageDataModule.from_arrays(images, labels)
    data.setup()
    changed = images.clone()
    held_out = data.parts["val"].rows + data.parts["test"].rows
    changed[held_out] = 255 - changed[held_out]
    other = ImageDataModule.from_arrays(changed, labels)
    other.setup()
    assert torch.equal(data.mean, other.mean)
    assert torch.equal(data.std, other.std)


def test_numpy_and_tensors_and_layouts_agree(images, labels):
    nhwc = images.permute(0, 2, 3, 1).numpy()
    nhwc.flags.writeable = False
    one = ImageDataModule.from_arrays(images, labels)
    two = ImageDataModule.from_arrays(nhwc, labels.numpy())
    for (x, y), (u, v) in zip(one.train_dataloader(), two.train_dataloader(), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_given_statistics_and_none(images, labels):
    data = ImageDataModule.from_arrays(images, labels, normalize=((0.5,), (0.25,)))
    x = next(iter(data.test_dataloader()))[0]
    torch.testing.assert_close(x, (images[data.parts["test"].rows].float() / 255 - 0.5) / 0.25)
    plain = ImageDataModule.from_arrays(images, labels, normalize="none")
    x = next(iter(plain.test_dataloader()))[0]
    torch.testing.assert_close(x, images[plain.parts["test"].rows].float() / 255)


def test_a_constant_channel_is_said_and_harmless(images, labels):
    images[:, 1] = 7
    with pytest.warns(UserWarning, match="Channel 1 has the same value"):
        x = next(iter(ImageDataModule.from_arrays(images, labels).train_dataloader()))[0]
    assert torch.isfinite(x).all()
    assert x[:, 1].abs().max() < 1e-6


# Augmentation.

OPS = [HorizontalFlip(), Rotate(20), GaussianNoise(0.1)]


def seen_pictures(images, labels, *, epochs=2, **options):
    """Return the augmented picture by (epoch, row)."""
    data = ImageDataModule.from_arrays(images, torch.arange(len(images)), split=SPLIT, augment=OPS, **options)
    model = Recorder()
    quiet_trainer(max_epochs=epochs).fit(model, data)
    return {(epoch, int(row)): picture for epoch, x, y in model.train_seen for picture, row in zip(x, y, strict=True)}


SPLIT = {"train": range(40), "val": range(40, 60)}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 7},
        {"num_workers": 2},
        {"where": "device"},
        {"where": "device", "batch_size": 40, "num_workers": 1},
    ],
)
def test_a_picture_is_augmented_alike_everywhere(images, labels, options):
    base = seen_pictures(images, labels, batch_size=10)
    other = seen_pictures(images, labels, **options)
    both = base.keys() & other.keys()
    assert len(both) >= 70
    assert not torch.equal(base[0, 3], base[1, 3]), "each epoch has its own draw"
    # the last bit may depend on how many pictures share a kernel call
    assert all(torch.allclose(base[key], other[key], atol=1e-5) for key in both)


def two_ranks(rank, images):
    data = ImageDataModule.from_arrays(images, torch.arange(N), split=SPLIT, augment=OPS, batch_size=10)
    model = Recorder()
    quiet_trainer(strategy="ddp", devices=2, max_epochs=2).fit(model, data)
    return [(epoch, y.tolist(), x.numpy()) for epoch, x, y in model.train_seen]


def test_two_ranks_augment_like_one(images, labels):
    alone = seen_pictures(images, labels, batch_size=10)
    for result in run_ranks(two_ranks, images):
        for epoch, rows, pictures in result:
            for row, picture in zip(rows, pictures, strict=True):
                assert torch.allclose(alone[epoch, row], torch.from_numpy(picture), atol=1e-5)


@pytest.mark.parametrize("where", ["device", "worker"])
def test_only_training_is_augmented(images, labels, where):
    data = ImageDataModule.from_arrays(images, labels, augment=OPS, where=where)
    model = Recorder()
    quiet_trainer(num_sanity_val_steps=2).fit(model, data)
    sanity, validation = model.val_seen
    assert torch.equal(sanity, validation)
    torch.testing.assert_close(validation.double(), expected(data, images, "val"), atol=1e-5, rtol=0)
    rows = data.parts["train"].rows
    trained = torch.cat([x for _, x, _ in model.train_seen])
    assert not torch.isclose(trained.sum(), expected(data, images, "train").sum().float(), rtol=1e-6)
    assert len(trained) == len(rows)


def test_training_batches_keep_two_columns_when_validated_on(images, labels):
    data = ImageDataModule.from_arrays(images, labels, augment=OPS, where="device")
    data.val_dataloader = data.train_dataloader
    model = Recorder()
    quiet_trainer(num_sanity_val_steps=0).validate(model, data)
    x = torch.cat(model.val_seen)
    assert abs(x.mean()) < 1e-4, "not augmented: exactly standardised"


def test_the_augments_own_statistics_hold_for_all_parts(images, labels):
    augment = BatchAugment([HorizontalFlip()], mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 0.5))
    data = ImageDataModule.from_arrays(images, labels, augment=augment)
    x = next(iter(data.val_dataloader()))[0]
    raw = images[data.parts["val"].rows].float() / 255
    torch.testing.assert_close(x[:, 2], (raw[:, 2] - 0.3) / 0.5)


def test_mixup_gives_soft_targets_in_training_only(images, labels):
    data = ImageDataModule.from_arrays(images, labels, augment=[MixUp()])
    _, y = next(iter(data.train_dataloader()))
    assert y.shape == (36, 4)
    torch.testing.assert_close(y.sum(dim=1), torch.ones(36))
    assert next(iter(data.val_dataloader()))[1].shape == (12,)


def test_standard_augmentation_keeps_shape(images, labels):
    x, _ = next(iter(ImageDataModule.from_arrays(images, labels, augment="standard").train_dataloader()))
    assert x.shape == (36, 3, 8, 8)


# The picture of a batch.


def test_the_picture_is_logged_once_per_fit(images, labels, tmp_path):
    data = ImageDataModule.from_arrays(images, labels, augment="standard")

    def pictures(name, **options):
        logger = CSVLogger(tmp_path, name=name)
        quiet_trainer(logger=logger, max_epochs=2, **options).fit(Recorder(), data)
        return [path.name for path in tmp_path.glob(f"{name}/**/*.png")]

    assert pictures("a", reload_dataloaders_every_n_epochs=1) == ["data_batch-step000000.png"]
    assert len(pictures("b")) == 1, "a second fit is another run"
    data.log_batch = False
    assert pictures("c") == []


def test_show_batch_draws_before_and_after(images, labels):
    figure = ImageDataModule.from_arrays(images, labels, augment="standard").show_batch(3)
    assert len(figure.axes) == 6
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["before", "after"]
    assert len(ImageDataModule.from_arrays(images, labels).show_batch(3).axes) == 3


def test_showing_moves_no_global_stream(images, labels):
    data = ImageDataModule.from_arrays(images, labels, augment=OPS)
    before = torch.get_rng_state()
    data.show_batch()
    assert torch.equal(before, torch.get_rng_state())


# Folders.


def test_folder_reads_what_torchvision_reads(folder):
    data = ImageDataModule.from_folder(folder, normalize="none", split={"train": range(18), "val": [18, 19]})
    theirs = ImageFolder(folder)
    assert data.classes == theirs.classes == ["ant", "bee"]
    data.setup()
    x, y = data.parts["train"].source.read(range(20), 0)
    assert y.tolist() == theirs.targets
    for picture, (path, _) in zip(x, theirs.samples, strict=True):
        assert torch.equal(picture, torchvision.io.decode_image(path))


def test_folder_of_parts_is_kept(folder, tmp_path):
    root = tmp_path / "parts"
    for part, rows in (("train", range(6)), ("test", range(6, 10))):
        for name in ("ant", "bee"):
            for i in rows:
                target = root / part / name / f"{i}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((folder / name / f"{i}.png").read_bytes())
    data = ImageDataModule.from_folder(root)
    data.setup()
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 9, "val": 3, "test": 8}
    names = {str(data._images.files[row].parent.parent.name) for row in data.parts["test"].rows}
    assert names == {"test"}
    (root / "test" / "cat").mkdir()
    save(root / "test/cat/1.png", np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(UserInputError, match=r"cat has no counterpart in train. Its classes are: ant, bee"):
        ImageDataModule.from_folder(root)


def test_size_and_channels_convert(folder):
    save(folder / "ant/grey.png", np.full((9, 12), 100, np.uint8))
    data = ImageDataModule.from_folder(folder, size=(4, 6), channels=3, split=(0.8, 0.2))
    assert data.image_shape == (3, 4, 6)
    x, _ = data._images.read([data._images.files.index(folder / "ant/grey.png")], 0)
    assert (x == 100).all()
    assert ImageDataModule.from_folder(folder, size=4, channels=1).image_shape == (1, 4, 4)


def test_pictures_are_turned_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    array = np.zeros((5, 6, 3), np.uint8)
    array[:, :3] = 255
    save(folder / "ant/turned.jpg", array, exif=exif, quality=100, subsampling=0)
    data = ImageDataModule.from_folder(folder)
    data.setup()
    x, _ = data._images.read([data._images.files.index(folder / "ant/turned.jpg")], 0)
    assert x.shape == (1, 3, 6, 5)
    assert (x[0, :, :3] > 250).all()
    assert (x[0, :, 3:] < 5).all()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_truncated_picture_names_the_file(folder):
    truncate(folder / "bee/3.png")
    data = ImageDataModule.from_folder(folder, normalize="none")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    with pytest.raises(UserInputError, match=r"bee/3.png is not a picture that can be read.*on_error='skip'"):
        list(chain(*loaders))


def test_a_file_that_is_no_picture_is_named_at_setup(folder):
    (folder / "bee/3.png").write_text("not a picture")
    with pytest.raises(UserInputError, match=r"bee/3.png is not a picture"):
        ImageDataModule.from_folder(folder).setup()


def test_broken_pictures_are_skipped_counted_and_reported(folder):
    truncate(folder / "bee/3.png")
    (folder / "ant/1.png").write_text("not a picture")
    data = ImageDataModule.from_folder(folder, on_error="skip")
    with pytest.warns(UserWarning, match=r"2 of 20 pictures cannot be read and are left out: .*ant/1.png, .*bee/3.png"):
        data.setup()
    assert sum(len(part) for part in data.parts.values()) == 18
    assert sum(len(y) for _, y in data.test_dataloader()) == len(data.parts["test"])


def test_skipping_a_whole_class_is_an_error(folder):
    for path in (folder / "bee").iterdir():
        path.write_text("no")
    with (
        pytest.warns(UserWarning, match="10 of 20 pictures"),
        pytest.raises(UserInputError, match="no picture of class bee can be read"),
    ):
        ImageDataModule.from_folder(folder, on_error="skip").setup()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 5), r"same number of channels, but most have 3 and .*odd.png has 1. Pass channels=3"),
        ((6, 5, 4), r"most have 3 and .*odd.png has 4"),
        ((7, 5, 3), r"same size \(height x width\), but most have 6x5 and .*odd.png has 7x5. Pass size="),
    ],
)
def test_mixed_pictures_get_a_sentence(folder, shape, message):
    save(folder / "ant/odd.png", np.zeros(shape, np.uint8))
    with pytest.raises(UserInputError, match=message):
        ImageDataModule.from_folder(folder).setup()


def test_wrong_folders_get_a_sentence(folder, tmp_path):
    with pytest.raises(UserInputError, match="nowhere is not a folder"):
        ImageDataModule.from_folder(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserInputError, match=r"one folder per class in .*bare, but it has none"):
        ImageDataModule.from_folder(tmp_path / "bare")
    (folder / "cow").mkdir()
    with pytest.raises(UserInputError, match=r"every class folder needs a picture .* but .*cow has none"):
        ImageDataModule.from_folder(folder)


def test_options_for_folders_are_checked(folder):
    with pytest.raises(UserInputError, match=r"one number or \(height, width\), but got \(1, 2, 3\)"):
        ImageDataModule.from_folder(folder, size=(1, 2, 3))
    with pytest.raises(UserInputError, match="channels must be 1 or 3, but got 2"):
        ImageDataModule.from_folder(folder, channels=2)


def test_transparent_pictures_get_a_sentence_or_are_flattened(tmp_path):
    for name in ("ant", "bee"):
        for i in range(5):
            save(tmp_path / name / f"{i}.png", np.full((6, 5 + i, 4), 255, np.uint8))
    with pytest.raises(UserInputError, match=r"1 or 3 channels, but .*ant/0.png has 4 \(transparency\)"):
        ImageDataModule.from_folder(tmp_path, size=(4, 4)).setup()
    data = ImageDataModule.from_folder(tmp_path, size=(4, 4), channels=1, normalize="none")
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape[1:] == (1, 4, 4)
    assert (x == 1).all()


def test_a_folder_in_three_parts_keeps_them_and_leaves_other_files_alone(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        for name in ("ant", "bee"):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
            (tmp_path / part / name / "notes.txt").write_text("not a picture")
    data = ImageDataModule.from_folder(tmp_path)
    data.setup()
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 12, "val": 6, "test": 4}


def test_pictures_are_looked_at_once_and_many_are_measured_by_a_sample(folder, monkeypatch):
    data = ImageDataModule.from_folder(folder)
    data.setup()
    monkeypatch.setattr(type(data._images), "_head", lambda *_: pytest.fail("looked at again"))
    data._images.check()
    monkeypatch.setattr("lightning_tricks.data.images._datamodule.MAX_DECODED", 5)
    measured = data._measured(range(3, 20))
    assert len(set(measured)) == 5
    assert measured == sorted(measured) == data._measured(range(3, 20))
    assert set(measured) <= set(range(3, 20))
    assert data._measured([4, 2, 9]) == [4, 2, 9]


def test_unreadable_folder_gets_a_sentence(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)  # chmod does not stop root
    with pytest.raises(UserInputError, match="cannot be read: permission denied"):
        ImageDataModule.from_folder(folder)


def test_sixteen_bits_get_a_sentence(folder):
    save(folder / "ant/deep.png", np.zeros((6, 5), np.uint16))
    with pytest.raises(UserInputError, match=r"8 bits per channel, but .*deep.png has mode I"):
        ImageDataModule.from_folder(folder).setup()


# Datasets.


class Noisy(Dataset):
    """Pictures with a random transform, as torchvision's datasets have them."""

    targets = (0, 1) * 10

    def __len__(self):
        return 20

    def __getitem__(self, i):
        noise = torch.randint(8, (1, 4, 4)) + int(np.random.randint(8))  # noqa: NPY002 - as transforms do
        return (noise + 10 * i).to(torch.uint8), self.targets[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_are_keyed_by_row_and_epoch(workers):
    def epochs(**options):
        data = ImageDataModule.from_datasets(Noisy(), normalize="none", **options)
        loader = data.train_dataloader()
        return [
            {int(p.min() * 255) // 10: p.tolist() for x, _ in loader for p in x} for _ in range(2)
        ]  # the row can be read off the picture

    base = epochs(batch_size=4)
    assert base == epochs(batch_size=3, num_workers=workers)
    assert base[0] != base[1]


def test_datasets_do_not_move_global_streams():
    data = ImageDataModule.from_datasets(Noisy())
    before = rng_state()
    list(data.train_dataloader())
    after = rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert before["python"] == after["python"]


def test_given_datasets_are_the_parts(images, labels):
    whole = TensorDataset(images, labels)
    data = ImageDataModule.from_datasets(Subset(whole, range(40)), test_dataset=Subset(whole, range(40, 60)))
    data.setup()
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 30, "val": 10, "test": 20}
    assert data.parts["test"].rows == list(range(40, 60))
    y = torch.cat([y for _, y in data.test_dataloader()])
    assert torch.equal(y, labels[40:])


def test_pil_pictures_and_class_names(folder):
    data = ImageDataModule.from_datasets(ImageFolder(folder))
    assert data.classes == ["ant", "bee"]
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (12, 3, 6, 5)


class Untouched(Dataset):
    """Keeps its labels as a list, so that no picture has to be read for them."""

    def __init__(self, labels):
        self.targets = labels

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        raise AssertionError("read")


def test_labels_of_joined_datasets_are_read_without_the_pictures(folder):
    joined = ConcatDataset([Untouched([0, 1, 2]), Subset(Untouched([3, 4, 5]), [2, 0])])
    assert _labels_of(joined) == [0, 1, 2, 5, 3]
    assert _in_memory({"train": ImageFolder(folder)}) is None, "its pictures are in files"


def test_only_the_first_rank_shows_a_batch(images, labels):
    data = ImageDataModule.from_arrays(images, labels, log_batch=True)
    data.trainer = SimpleNamespace(is_global_zero=False, loggers=[None])
    data.show_batch = lambda: pytest.fail("drawn on another rank")
    data._log_batch_once()
    assert data._batch_is_logged, "asked once"


def test_float_pictures_are_taken_as_ready(images, labels):
    ready = TensorDataset(images.float() / 100, labels)
    data = ImageDataModule.from_datasets(ready)
    x, _ = next(iter(data.val_dataloader()))
    assert torch.equal(x, images[data.parts["val"].rows].float() / 100)
    with pytest.raises(UserInputError, match="augment needs uint8 pictures, but the dataset gives floats"):
        ImageDataModule.from_datasets(ready, augment="standard").setup()


class Ragged(Noisy):
    def __getitem__(self, i):
        return torch.zeros((3 if i == 7 else 1, 4, 4), dtype=torch.uint8), self.targets[i]


class Strange(Noisy):
    def __getitem__(self, i):
        return "a picture", self.targets[i]


class Unlabelled(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.zeros(1, 4, 4)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Ragged(),
            r"same shape and dtype, but sample \d+ is uint8 \(1, 4, 4\) and sample 7 is uint8 \(3, 4, 4\)|sample 7",
        ),
        (Strange(), "must be PIL images or tensors, but sample 0 is a str"),
        (
            TensorDataset(torch.zeros(20, 1, 4, 4).long(), torch.arange(20) % 2),
            r"or float \(C, H, W\), but sample 0 is int64",
        ),
        (TensorDataset(torch.zeros(20, 4, 4), torch.arange(20) % 2), r"or float \(C, H, W\), but sample 0 is float32"),
        (Unlabelled(), "but sample 0 is a Tensor: labels are missing"),
        (Subset(Noisy(), []), "dataset is empty"),
        (iter([]), "Iterable datasets cannot be split"),
    ],
)
def test_bad_datasets_get_a_sentence(dataset, message):
    split = {"train": range(18), "val": [18, 19]}
    with pytest.raises(UserInputError, match=message):
        ImageDataModule.from_datasets(dataset, split=split).setup()


# torchvision's collection.


def test_torchvision_set_that_is_not_there(tmp_path):
    with pytest.raises(UserInputError, match=r"CIFAR10 cannot be read in .*pass download=True"):
        ImageDataModule.from_torchvision("CIFAR10", tmp_path)
    with pytest.raises(UserInputError, match="Did you mean 'CIFAR10'"):
        ImageDataModule.from_torchvision("CIFAR-10", tmp_path)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_torchvision_keeps_its_test_part(tmp_path):
    raw = tmp_path / "MNIST/raw"
    generator = np.random.default_rng(0)
    for name, n in (("train", 80), ("t10k", 20)):
        write_idx(raw / f"{name}-images-idx3-ubyte", generator.integers(0, 256, (n, 28, 28)))
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(n) % 10)
    data = ImageDataModule.from_torchvision("MNIST", tmp_path, batch_size=20)
    data.setup()
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 60, "val": 20, "test": 20}
    assert data.num_classes == 10
    x, y = next(iter(data.test_dataloader()))
    assert x.shape == (20, 1, 28, 28)
    assert y.tolist() == list(range(10)) * 2


# Arrays that cannot be right.


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            np.zeros((9, 3, 8, 8), np.float32),
            np.arange(9) % 3,
            r"uint8 in 0..255, but got float32 in \[0, 0\]. Convert",
        ),
        (np.full((9, 3, 8, 8), 300), np.arange(9) % 3, r"but got int64 in \[300, 300\]"),
        (np.zeros((9, 5, 8, 8), np.uint8), np.arange(9) % 3, "fits neither. Say layout="),
        (np.zeros((9, 3, 8, 3), np.uint8), np.arange(9) % 3, "fits both. Say layout="),
        (np.zeros((9, 64), np.uint8), np.arange(9) % 3, r"axes NCHW, NHWC or NHW.*\(9, 64\)"),
        (np.zeros((0, 3, 8, 8), np.uint8), [], "none of them empty"),
        (np.zeros((9, 8, 8), np.uint8), None, "labels are missing"),
        (np.zeros((9, 8, 8), np.uint8), [0, 1], r"9 samples, but got labels of shape \(2,\)"),
        (np.zeros((9, 8, 8), np.uint8), [0, 1, 3] * 3, r"0..2 without gaps \(3 classes\), but got 0, 1, 3. Renumber"),
        (np.zeros((9, 8, 8), np.uint8), [1, 2, 3] * 3, r"without gaps"),
        (np.zeros((9, 8, 8), np.uint8), [0, -1, 1] * 3, "without gaps"),
        (np.zeros((9, 8, 8), np.uint8), [0, 1, float("nan")] * 3, "3 are NaN"),
        (np.zeros((9, 8, 8), np.uint8), [0, 1, 0.5] * 3, "whole numbers"),
        (np.zeros((9, 8, 8), np.uint8), ["a", "", None] * 3, "6 are empty"),
        (np.zeros((9, 8, 8), np.uint8), np.zeros((9, 2)), r"labels of shape \(9, 2\)"),
    ],
)
def test_bad_arrays_get_a_sentence(images, labels, message):
    with pytest.raises(UserInputError, match=message):
        ImageDataModule.from_arrays(images, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "strong"}, "augment must be one of none, standard"),
        ({"augment": [1]}, "takes operations"),
        ({"normalize": "imagenet"}, "normalize must be one of none, train"),
        ({"normalize": 0.5}, "'train', 'none' or"),
        ({"normalize": ((0.5,), (0.0,))}, "every std of normalize"),
        ({"normalize": ((0.5, 0.5), (0.1, 0.1))}, "one number per channel, 3 or 1, but got 2"),
        ({"classes": ["a", "b"]}, r"0..1 without gaps \(2 classes\), but got 0, 1, 2, 3"),
        ({"layout": "CHWN"}, "layout must be one of"),
        ({"layout": "NHW"}, r"layout NHW needs 3 axes, but images have shape \(60, 3, 8, 8\)"),
    ],
)
def test_bad_options_get_a_sentence(images, labels, options, message):
    with pytest.raises(UserInputError, match=message):
        ImageDataModule.from_arrays(images, labels, **options).setup()


def test_labels_may_be_a_column_and_whole_floats(images, labels):
    plain = ImageDataModule.from_arrays(images, labels)
    for same in (labels[:, None], labels.double(), labels.numpy().astype("float32")[:, None]):
        data = ImageDataModule.from_arrays(images, same, layout="NCHW")
        assert torch.equal(data._images.labels, plain._images.labels)
        assert data.classes == plain.classes


def test_names_must_be_among_the_classes(images):
    names = ["ant", "bee", "cow", "dog"] * 15
    with pytest.raises(UserInputError, match="must be among the classes ant, bee, but got cow, dog"):
        ImageDataModule.from_arrays(images, names, classes=["ant", "bee"])


def test_a_class_with_too_few_samples_is_named(images):
    labels = torch.arange(N) % 4
    labels[labels == 3] = 2
    labels[0] = 3
    with pytest.raises(UserInputError, match="at least 3 samples of each class, but class 3 has 1"):
        ImageDataModule.from_arrays(images, labels).setup()
    ImageDataModule.from_arrays(images, labels, split_by="random").setup()


# Digits.


def test_digits_keep_their_promises():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(1797), test_size=0.2, stratify=labels, random_state=3)
    train, val = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=3)
    data = DigitsDataModule(batch_size=50, seed=3)
    data.setup("fit")
    assert [part.rows for part in data.parts.values()] == [train, val, test]
    x = torch.cat([x for x, _ in data.test_dataloader()])
    raw = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    torch.testing.assert_close(x, (raw[test] - raw[train].mean()) / raw[train].std())
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((50, 1, 8, 8), torch.float32, (50,), torch.int64)
