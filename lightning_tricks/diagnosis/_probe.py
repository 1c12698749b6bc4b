"""Tries a model out on copies, so that the model itself, its data and every random stream stay as they are."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from itertools import islice
from numbers import Number
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset, default_collate

from lightning_tricks._base import isolated_rng
from lightning_tricks.diagnosis._losses import LossCall, LossSpy
from lightning_tricks.diagnosis._trainer_view import TrainerView
from lightning_tricks.diagnosis.rules._data import sample_input, sample_label
from lightning_tricks.diagnosis.rules._layers import LayerCall, trace_layers

_SAMPLES = 256
_BATCH = 32


class Probe:
    """What the rules need to know about a model and its data, found out once and only when asked for.

    Args:
        model: never touched; copies of it run.
        train: training loader, or None.
        val: validation loader, or None.
        trainer: given to the copies, which may ask it for the epoch.
        transfer: what happens to a batch on its way to the model.
        datamodule: where the loaders come from, for a trainer that does not run yet.
    """

    def __init__(
        self,
        model: LightningModule,
        train: DataLoader[Any] | None,
        val: DataLoader[Any] | None,
        trainer: Trainer,
        transfer: Callable[[Any], Any] | None = None,
        datamodule: LightningDataModule | None = None,
    ) -> None:
        self.model, self.train, self.val, self.trainer = model, train, val, trainer
        self.datamodule = datamodule
        self._transfer = transfer or (lambda batch: batch)

    @cached_property
    def samples(self) -> list[Any]:
        """Up to 256 training samples, drawn at random; empty if the loader has no map-style dataset."""
        return samples_of(self.train, _SAMPLES)

    @cached_property
    def many_inputs(self) -> list[Tensor]:
        """Inputs of up to 4000 training samples, as the dataset returns them."""
        found = [sample_input(sample) for sample in samples_of(self.train, 4000)]
        return [x for x in found if isinstance(x, Tensor)]

    @cached_property
    def batch(self) -> Any:
        """A training batch of up to 32 samples, on the model's device; made without the loader's sampler."""
        return self.collate(self.samples[: self._rows])

    @property
    def _rows(self) -> int:
        return max(2, min(_BATCH, self._batch_size or _BATCH, len(self.samples)))

    @property
    def _batch_size(self) -> int | None:
        return None if self.train is None else batch_size_of(self.train)

    @property
    def inputs(self) -> Tensor:
        """The inputs of :attr:`batch`."""
        return _tensor(sample_input(self.batch))

    @cached_property
    def labels(self) -> Tensor:
        """Classes of :attr:`samples` where the dataset surely gives them, one axis; empty otherwise.

        It is what to ask where no loss was seen: the second of two items may also be a length or another input.
        """
        found = [sample_label(sample) for sample in self.samples]
        if not found or not all(_is_number(label) for label in found):
            return torch.zeros(0)
        labels = torch.stack([torch.as_tensor(label) for label in found])
        return labels if labels.min() == 0 else torch.zeros(0)  # classes are numbered from 0

    def fresh(self) -> LightningModule:
        """Return a copy of the model that logs nowhere."""
        twin = copy.deepcopy(self.model)
        # A copy asks this view in place of the trainer that the model would have.
        setattr(twin, "_trainer", TrainerView(self.trainer, twin, self.train, self.datamodule))
        for name in ("log", "log_dict"):
            object.__setattr__(twin, name, lambda *args, **kwargs: None)
        return twin

    @cached_property
    def first(self) -> "Step":
        """One training step of a copy with its update."""
        return self.run_steps(self.fresh(), self.batch, 1)

    @cached_property
    def loss_call(self) -> LossCall | None:
        """The last call of a loss function in the first training step."""
        return self.first.calls[-1] if self.first.calls else None

    def optimizers(self, model: LightningModule) -> list[Optimizer]:
        """Return the optimizers that a copy configures, at their full rates: a warm-up may begin at 0."""
        optimizers = optimizers_in(model.configure_optimizers())
        twins = dict(model.named_parameters(remove_duplicate=False))
        own = {id(p): twins[n] for n, p in self.model.named_parameters(remove_duplicate=False) if n in twins}
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            # trainer.model and whatever a function had bound name the model itself, not its copy
            group["params"] = [own.get(id(p), p) for p in group["params"]]
            if group.get("lr") is not None:
                group["lr"] = max(group["lr"], group.get("initial_lr", group["lr"]))
        return optimizers

    def run_steps(
        self, model: LightningModule, batch: Any, count: int, *, lr_factor: float = 1.0, batches: Sequence[Any] = ()
    ) -> "Step":
        """Train ``model`` and return what was seen in the last of ``count`` steps.

        Args:
            model: a copy.
            batch: to train on.
            count: steps, at least 1.
            lr_factor: on every learning rate.
            batches: to train on in turns, instead of ``batch``.
        """
        optimizers = self.optimizers(model)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if group.get("lr") is not None:
                group["lr"] = group["lr"] * lr_factor
        owned = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        step = Step()
        with torch.enable_grad():
            for i in range(count):
                model.zero_grad(set_to_none=True)
                with (
                    self._precision(),
                    LossSpy() as spy,
                    trace_layers(model) if i == count - 1 else nullcontext() as trace,
                ):
                    loss = _loss_of(step_of(model, batches[i % len(batches)] if batches else batch))
                step.loss, step.calls = loss.item(), spy.calls
                if trace is not None:
                    step.layers = trace.calls
                    step.outside = _leaves(loss, {id(p) for p in model.parameters()} | owned)
                loss.backward()  # type: ignore[no-untyped-call]
                for optimizer in optimizers:
                    optimizer.step()
        step.before = before
        step.after = {name: p.detach() for name, p in model.named_parameters()}
        step.gradients = {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}
        step.trained = [name for name, p in model.named_parameters() if p.requires_grad and id(p) in owned]
        step.optimizers = optimizers
        return step

    @cached_property
    def attempted(self) -> list[LossCall]:
        """The losses that a step on all samples calls, even if it fails on what it is given.

        One batch holds too few of each class, but where a step only takes batches of its own size, one must do.
        """
        return self._attempt(self.samples) or self._attempt(self.samples[: self._rows])

    @torch.no_grad()
    def _attempt(self, samples: Sequence[Any]) -> list[LossCall]:
        with self._precision(), LossSpy() as spy, suppress(IndexError, RuntimeError, ValueError):
            step_of(self.fresh(), self.collate(samples))
        calls: list[LossCall] = spy.calls
        return calls

    @torch.no_grad()
    def predict(self, model: LightningModule, batch: Any) -> Tensor:
        """Return what ``model`` gives to its loss in evaluation mode."""
        model.eval()
        outputs: list[Tensor] = []

        def keep(module: object, inputs: object, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            is_rows = isinstance(first, Tensor) and first.is_floating_point() and first.ndim > 0
            if is_rows and not isinstance(module, nn.modules.loss._Loss):  # a loss object is no prediction
                outputs.append(first)

        handles = [module.register_forward_hook(keep) for module in (model, *model.children())]
        try:
            with self._precision(), LossSpy() as spy:
                step_of(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        found = [spy.calls[-1].prediction] if spy.calls else outputs  # a loss of one's own: what the net returned
        if not found:
            raise LookupError("training_step calls neither a loss of torch.nn.functional nor the model's layers")
        prediction: Tensor = found[-1].double()
        return prediction

    def loss_call_of(self, model: LightningModule, batch: Any) -> LossCall | None:
        """Return the last loss call on a batch in evaluation mode."""
        model.eval()
        with torch.no_grad(), self._precision(), LossSpy() as spy:
            step_of(model, batch)
        return spy.calls[-1] if spy.calls else None

    @torch.no_grad()
    def draws_noise(self, model: LightningModule) -> bool:
        """Whether a training step draws noise of its own in evaluation mode, as those of VAEs and diffusion do."""
        model.eval()
        with self._precision(), LossSpy() as spy:
            step_of(model, self.batch)
        drawn: bool = spy.draws_noise
        return drawn

    def keeps_gradients(self) -> bool:
        """Whether ``optimizer_zero_grad`` never clears the gradients, in 16 batches."""
        twin = self.fresh()
        optimizers = self.optimizers(twin)
        owned = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        for p in owned:
            p.grad = torch.ones_like(p)
        for i in range(16):
            for optimizer in optimizers:
                twin.optimizer_zero_grad(0, i, optimizer)
        return bool(owned) and all(p.grad is not None and bool(p.grad.any()) for p in owned)

    def collate(self, samples: Sequence[Any]) -> Any:
        """Return samples as a batch on the model's device."""
        collate = default_collate if self.train is None or self._batch_size is None else self.train.collate_fn
        return self._transfer(move_data_to_device(collate(list(samples)), self.model.device))

    @torch.no_grad()
    def loss(self, model: LightningModule, batch: Any) -> float:
        """Return the loss of a batch in the model's mode."""
        with self._precision():
            return _loss_of(step_of(model, batch)).item()

    def cross_gradient(self, model: LightningModule) -> Tensor | None:
        """Return how much the outputs for the first and last sample depend on each sample's input, ``(2, B)``.

        It is the norm of the gradient of a random projection in evaluation mode: a plain sum is blind behind a softmax
        or a LayerNorm. First and last, since what runs along the batch axis may only look back. None for inputs or
        models that have no gradient (integers).
        """
        if not self.inputs.is_floating_point():
            return None
        x = self.inputs.detach().clone().requires_grad_()
        model.eval()
        with torch.enable_grad(), self._precision(), LossSpy(keep_graph=True) as spy:
            step_of(model, with_input(self.batch, x))
            if not spy.calls or not spy.calls[-1].prediction.requires_grad:
                return None
            layouts = first_and_last(spy.calls[-1].prediction, len(x))
            found = [torch.stack([_reach(rows, x) for rows in layout]) for layout in layouts]
        # where time steps may lie either way, the way in which fewer samples mix is the right one
        return min(found, key=lambda norms: int((norms > 0).sum()), default=None)

    def exchanged(self) -> Any:
        """Return the batch with its first input replaced by its second."""
        x = self.inputs.clone()
        x[0] = x[1]
        return with_input(self.batch, x)

    def _precision(self) -> Any:
        plugin = getattr(self.trainer, "precision_plugin", None)
        return nullcontext() if plugin is None else plugin.forward_context()


def step_of(model: LightningModule, batch: Any) -> Any:
    """Return what a training step returns; Lightning allows it to take no ``batch_idx``."""
    if is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2):
        return model.training_step(batch, 0)
    return model.training_step(batch)


class Step:
    """What one training step showed."""

    loss: float
    calls: list[LossCall]
    layers: list[LayerCall]
    gradients: dict[str, Tensor]
    outside: list[Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    trained: list[str]
    optimizers: list[Optimizer]


def samples_of(loader: DataLoader[Any] | None, limit: int) -> list[Any]:
    """Return up to ``limit`` samples of a loader's dataset drawn at random, without touching its sampler.

    A loader without batch size asks its dataset for whole batches; the first ones of a copy of its sampler are cut.
    """
    if loader is None:
        return []
    if isinstance(loader.dataset, IterableDataset):
        return [] if batch_size_of(loader) is None else _from_copy(loader.dataset, limit)
    if batch_size_of(loader) is None:
        return _cut_batches(loader, limit)
    size = len(loader.dataset)  # type: ignore[arg-type]
    chosen = random.Random(0).sample(range(size), min(size, limit))  # noqa: S311 - a stride could pick one class only
    return [loader.dataset[i] for i in chosen]


def _from_copy(stream: IterableDataset[Any], limit: int) -> list[Any]:
    """Return the first samples of a copy of a stream; nothing if it cannot be copied."""
    try:
        samples = list(islice(copy.deepcopy(stream), limit))
    except Exception:  # a file, a socket, a generator
        return []
    return samples


def _cut_batches(loader: DataLoader[Any], limit: int) -> list[Any]:
    samples: list[Any] = []
    for key in copy.deepcopy(loader.sampler):
        batch = loader.collate_fn(loader.dataset[key])
        if not isinstance(batch, (tuple, list)) or not all(isinstance(part, Tensor) for part in batch):
            return []
        samples += zip(*batch, strict=True)
        if len(samples) >= limit:
            break
    return samples[:limit]


def batch_size_of(loader: DataLoader[Any]) -> int | None:
    """Return the batch size of a loader or of its batch sampler; None if the dataset itself makes batches."""
    size = loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else None


def first_and_last(prediction: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the rows of a prediction for the first and the last sample, for each way in which time steps may lie.

    Example:
        >>> [(first.tolist(), last.tolist()) for first, last in first_and_last(torch.arange(6), 3)]
        [([0, 1], [4, 5]), ([0, 3], [2, 5])]
    """
    if prediction.ndim == 0 or prediction.shape[0] % batch_size:
        return []
    steps = prediction.shape[0] // batch_size
    blocks = (prediction[:steps], prediction[-steps:])
    return [blocks] if steps == 1 else [blocks, (prediction[::batch_size], prediction[batch_size - 1 :: batch_size])]


def _reach(rows: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((rows * torch.randn_like(rows)).sum(), x, retain_graph=True)
    norms: Tensor = gradient.double().flatten(1).norm(dim=1)
    return norms


def with_input(batch: Any, x: Tensor) -> Any:
    """Return a batch with other inputs."""
    if isinstance(batch, dict):
        old = sample_input(batch)
        return {key: x if value is old else value for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [x, *batch[1:]]
    return x


def optimizers_in(configured: Any) -> list[Optimizer]:
    """Return the optimizers in whatever ``configure_optimizers`` may return.

    Example:
        >>> from torch import nn
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        >>> len(optimizers_in({"optimizer": optimizer})), len(optimizers_in(([optimizer], []))), optimizers_in(None)
        (1, 1, [])
    """
    if isinstance(configured, Optimizer):
        return [configured]
    if isinstance(configured, dict):
        return optimizers_in(configured.get("optimizer"))
    if isinstance(configured, Sequence):
        return [optimizer for part in configured for optimizer in optimizers_in(part)]
    return []


@contextmanager
def untouched(*loaders: DataLoader[Any] | None) -> Iterator[None]:
    """Give every global random stream and the loaders' own generators back as they were."""
    generators = [g for loader in loaders for g in _generators(loader)]
    states = [g.get_state() for g in generators]
    with isolated_rng(seed=0):
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _generators(loader: DataLoader[Any] | None) -> list[torch.Generator]:
    found = [getattr(part, "generator", None) for part in (loader, getattr(loader, "sampler", None))]
    return [g for g in found if isinstance(g, torch.Generator)]


def _leaves(loss: Tensor, known: set[int]) -> list[Tensor]:
    """Return the trainable tensors behind a loss that are not among the known ones."""
    seen: set[Any] = set()
    found: dict[int, Tensor] = {}
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor) and id(variable) not in known:
            found[id(variable)] = variable
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def _loss_of(output: Any) -> Tensor:
    loss = output["loss"] if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise LookupError(f"training_step returned {type(loss).__name__}, not a loss")
    return loss


def _is_number(label: Any) -> bool:
    return isinstance(label, Number) or (isinstance(label, Tensor) and label.ndim == 0)


def _tensor(x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise LookupError(f"inputs are {type(x).__name__}, not a tensor")
    return x
