"""Best weights in odd places: sharded, resumed, on a full disk, after another class's checkpoint."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fault_scenarios import fit
from helpers import run_ranks
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.strategies import ModelParallelStrategy
from stopping_models import Noisy, Scripted, assert_same, dots, noise, tensors
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.stopping._best_weights import (
    copy_optimizers,
    copy_tensors,
    put_back,
    put_back_optimizers,
)

warnings_off = pytest.mark.filterwarnings("ignore::UserWarning")
CURVE = [3.0, 2.0, 1.0, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1]


# --- Sharded parameters -------------------------------------------------------------------------------------------


class Sharded(Noisy):
    def configure_model(self):
        if not isinstance(self.net[0].weight, DTensor):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def _shards(module):
    module.net.reshard()
    return {k: v.to_local() if isinstance(v, DTensor) else v for k, v in tensors(module).items()}


def sharded_fit(callbacks, folder, **options):
    module = Sharded()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, **options.pop("strategy", {}))
    options = {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), **options}
    trainer = fit(
        module,
        callbacks,
        train=noise(0, shuffle=True),
        val=noise(1),
        strategy=strategy,
        devices=2,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **options,
    )
    return module, trainer


def _restored(rank, folder):
    warnings.simplefilter("ignore")
    steps = []
    for keep in ("cpu", "disk"):
        stopping = lt.EarlyStopping("val_loss", patience=2, keep=keep)
        module, trainer = sharded_fit([stopping], folder)
        assert isinstance(module.net[0].weight, DTensor)
        assert 0 < stopping.best_step < trainer.global_step
        again, _ = sharded_fit([], folder, max_epochs=-1, max_steps=stopping.best_step)
        assert_same(_shards(module), _shards(again))
        steps.append((stopping.best_step, stopping.reason, float(stopping.best_score)))
    assert steps[0] == steps[1]
    return steps[0]


def test_sharded_weights_are_restored(tmp_path):
    one, other = run_ranks(_restored, str(tmp_path))
    assert one == other


def _resumed(rank, folder, full):
    warnings.simplefilter("ignore")

    def callbacks():
        saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        plateau = lt.ReduceLROnPlateau("val_loss", patience=1, factor=0.5)
        stopping = lt.EarlyStopping("val_loss", patience=3, after_lr_drop="ignore")
        return [stopping, plateau, lt.ExactResume(), saver]

    strategy = {"save_distributed_checkpoint": not full}
    first = callbacks()
    whole, _ = sharded_fit(first, folder, strategy=strategy)
    best, last = first[0].best_epoch, first[0].stopped_epoch
    assert best < last - 1
    second = callbacks()
    resumed, _ = sharded_fit(second, folder, strategy=strategy, ckpt=f"{folder}/epoch={last - 1}.ckpt")
    assert second[0].message == first[0].message
    assert second[1].reductions == first[1].reductions
    # rank 1's running statistics are not in Lightning's checkpoint: each rank resumes with rank zero's
    ends = [{k: v for k, v in _shards(m).items() if rank == 0 or "running" not in k} for m in (whole, resumed)]
    assert_same(*ends)


@pytest.mark.parametrize("full", [True, False], ids=["one file", "distributed checkpoint"])
def test_sharded_best_weights_go_through_a_checkpoint(full, tmp_path):
    run_ranks(_resumed, str(tmp_path), full)


def _refused(rank, folder):
    warnings.simplefilter("ignore")
    with pytest.raises(UserInputError, match=r"restore_optimizer=True.* does not work with sharded parameters"):
        sharded_fit([lt.EarlyStopping("val_loss", patience=2, restore_optimizer=True)], folder)


def test_optimizer_memory_of_sharded_models_is_refused(tmp_path):
    run_ranks(_refused, str(tmp_path))


# --- Resuming -----------------------------------------------------------------------------------------------------


def resume(folder, before, after, *, first=10, then=10, epoch):
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    fit(Scripted(CURVE), [*before, saver], max_epochs=first, enable_checkpointing=True)
    module = Scripted(CURVE)
    module.epochs_trained = epoch + 1
    again = ModelCheckpoint(folder, filename="again-{epoch}", save_top_k=-1)
    trainer = fit(
        module, [*after, again], max_epochs=then, enable_checkpointing=True, ckpt=Path(folder) / f"epoch={epoch}.ckpt"
    )
    return module, trainer


@warnings_off
def test_a_stopped_run_stays_stopped_unless_patience_is_raised(tmp_path, caplog):
    def stopping(patience):
        return lt.EarlyStopping("val_loss", patience=patience)

    same = stopping(2)
    module, _ = resume(tmp_path / "same", [stopping(2)], [same], epoch=4)
    assert module.epochs_trained == 5
    assert same.reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert "the resumed run had already stopped and stays so" in caplog.text
    more = stopping(4)
    module, _ = resume(tmp_path / "more", [stopping(2)], [more], epoch=4)
    assert module.epochs_trained == 7
    assert (more.best_epoch, more.best_step) == (2, 6)
    assert "with the new settings it goes on" in caplog.text
    assert "EarlyStopping: not as in the checkpoint: patience is 4, was 2." in caplog.text


@warnings_off
def test_a_run_resumed_at_its_very_end_has_the_best_weights(tmp_path):
    """Lightning skips the training loop, ``on_train_end`` included."""
    first, second = (lt.EarlyStopping("val_loss", patience=9) for _ in range(2))
    module, _ = resume(tmp_path, [first], [second], first=6, then=6, epoch=5)
    best = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)["state_dict"]
    assert_same(tensors(module), best)
    assert second.message.endswith("the module has the weights of epoch 2 (step 6), val_loss = 1.")


@warnings_off
def test_a_checkpoint_written_after_the_fit_keeps_the_best(tmp_path):
    module = Scripted(CURVE)
    first, second = (lt.EarlyStopping("val_loss", patience=n) for n in (2, 4))
    trainer = fit(module, [first], max_epochs=10)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    best = tensors(module)
    again = Scripted(CURVE)
    fit(again, [second], max_epochs=10, ckpt=tmp_path / "after.ckpt")
    assert second.best_epoch == 2
    assert_same(tensors(again), best)


@warnings_off
def test_a_second_fit_starts_fresh():
    stopping = lt.EarlyStopping("val_loss", patience=3)
    fit(Scripted([0.1] * 9), [stopping], max_epochs=9)
    assert stopping.best_score == pytest.approx(0.1)
    module = Scripted(CURVE)
    fit(module, [stopping], max_epochs=3)
    assert (module.epochs_trained, stopping.best_score.item(), stopping.best_epoch) == (3, 1.0, 2)


@warnings_off
def test_the_best_weights_are_not_in_a_checkpoint_of_lightnings_class_and_are_looked_for_anew(tmp_path):
    theirs, ours = LightningEarlyStopping("val_loss", patience=5), lt.EarlyStopping("val_loss", patience=5)
    resume(tmp_path, [theirs], [ours], first=2, epoch=1)
    assert ours.best_epoch >= 2


def test_the_state_of_a_foreign_class_is_not_taken_over():
    with pytest.warns(UserWarning, match="was written by another class; its state is not taken over"):
        lt.EarlyStopping("val_loss", patience=5).load_state_dict({"best": 1.0})


@warnings_off
def test_what_the_checkpoint_does_not_hold_is_looked_for_anew(tmp_path):
    """The first run kept no weights; a metric that is new has no history."""
    bare = lt.EarlyStopping("val_loss", patience=9, restore_best=False)
    keeping = lt.EarlyStopping(["val_loss", "lr"], mode="min", patience=9, strict=False)
    module, _ = resume(tmp_path, [bare], [keeping], first=5, then=7, epoch=4)
    assert (keeping.best_epoch, keeping.best_score.item()) == (5, pytest.approx(1.7))
    assert [rule.checks for rule in keeping.rules.values()] == [7, 0]
    saved = torch.load(tmp_path / "again-epoch=5.ckpt", weights_only=True)["state_dict"]
    assert_same(tensors(module), saved)


# --- On disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_the_previous_best_stays(tmp_path, monkeypatch):
    real, written = torch.save, []

    def save(content, file, **options):
        written.append(file)
        if len(written) == 3:
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(content, file, **options)

    monkeypatch.setattr(torch, "save", save)
    stopping = lt.EarlyStopping("val_loss", patience=9, keep="disk", dirpath=str(tmp_path))
    module = Scripted(CURVE)
    with pytest.warns(UserWarning, match="No space left on device. Training goes on; those of step 4 stay"):
        fit(module, [stopping], max_epochs=8)
    assert module.epochs_trained == 8
    assert len(written) == 4, "once more for 1.5, which beats the 2.0 that could be kept"
    assert (stopping.best_epoch, stopping.best_score.item()) == (3, 1.5)
    assert [file.suffix for file in tmp_path.iterdir()] == [".pt"], "nothing half written is left"


def test_only_files_that_a_checkpoint_may_need_are_kept(tmp_path):
    def files(callbacks, folder):
        stopping = lt.EarlyStopping("val_loss", patience=9, keep="disk", dirpath=str(folder))
        fit(
            Scripted([10.0 - n for n in range(9)]),
            [stopping, *callbacks],
            max_epochs=9,
            enable_checkpointing=bool(callbacks),
        )
        return len(list(folder.iterdir()))

    assert files([], tmp_path / "alone") == 1
    assert files([ModelCheckpoint(tmp_path / "ckpt", save_last=True)], tmp_path / "with") <= 3


@warnings_off
def test_a_file_that_is_gone_is_said(tmp_path):
    first, second = (
        lt.EarlyStopping("val_loss", patience=9, keep="disk", dirpath=str(tmp_path / name)) for name in ("a", "b")
    )
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(Scripted(CURVE), [first, saver], max_epochs=5, enable_checkpointing=True)
    for file in (tmp_path / "a").iterdir():
        file.unlink()
    with pytest.warns(UserWarning, match="which is gone. The best is looked for anew"):
        fit(Scripted(CURVE), [second], max_epochs=9, ckpt=tmp_path / "epoch=4.ckpt")
    assert second.best_epoch == 5


def test_at_most_one_copy_per_improvement(monkeypatch):
    from lightning_tricks.callbacks.stopping import _best_weights

    copies = []
    real = _best_weights.copy_tensors
    monkeypatch.setattr(_best_weights, "copy_tensors", lambda *args: copies.append(1) or real(*args))
    fit(Scripted(CURVE), [lt.EarlyStopping("val_loss", patience=9)], max_epochs=8)
    assert len(copies) == 3


def test_keeping_and_restoring_draw_no_random_number():
    module = Scripted(CURVE)
    keeper = lt.EarlyStopping("val_loss", patience=2)._keeper
    trainer = fit(module, [], max_epochs=1, val=dots())
    module.net.eval()
    state, best = torch.get_rng_state(), tensors(module)
    keeper.take(trainer, module, 1.0, validated=True)
    torch.nn.init.zeros_(module.net.weight)
    keeper.put_back(trainer, module)
    assert_same(tensors(module), best)
    assert torch.equal(state, torch.get_rng_state())
    assert module.training
    assert not module.net.training


def test_memory_with_lists_in_it_comes_back():
    """L-BFGS keeps lists of tensors, numbers and None."""

    def optimized():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)
        return net, torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=2, history_size=3)

    def steps(net, optimizer, count):
        def closure():
            optimizer.zero_grad()
            loss = (net(torch.eye(3)) - 1).square().sum()
            loss.backward()
            return loss

        for _ in range(count):
            optimizer.step(closure)

    net, optimizer = optimized()
    steps(net, optimizer, 3)
    best, memory = copy_tensors(net, "cpu"), copy_optimizers(SimpleNamespace(optimizers=[optimizer]))
    steps(net, optimizer, 2)
    expected = tensors(net)
    steps(net, optimizer, 3)
    put_back(net, best)
    put_back_optimizers(SimpleNamespace(optimizers=[optimizer]), memory)
    steps(net, optimizer, 2)
    assert_same(tensors(net), expected)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_layers_without_a_shape_are_left_out_and_those_that_came_later_stay():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LazyLinear(2))
    saved = copy_tensors(net, "cpu")
    assert set(saved) == {"0.weight", "0.bias"}
    net(torch.ones(1, 2))
    later = tensors(net)
    torch.nn.init.zeros_(net[0].weight)
    put_back(net, saved)
    assert_same(tensors(net), later)
