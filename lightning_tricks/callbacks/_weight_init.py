"""Initialise the weights once, when training really starts."""

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_tricks._base import (
    UserInputError,
    check_choice,
    isolated_rng,
    log_figure,
    log_table,
    warn_once,
)
from lightning_tricks.init import COLUMNS, SCHEMES, InitReport, Scheme, init_weights, is_small, untouched_modules


class WeightInit(Callback):
    """Initialise the model with :func:`init_weights` when a fit starts from scratch.

    It acts in ``on_fit_start``: layers made in ``configure_model`` exist then, Lightning has given memory to the meta
    parameters of a sharded model, and a checkpoint to resume from is known. A resumed run is never touched, nor is a
    model that this callback has initialised before. Parameters made on the meta device in ``__init__`` get their
    memory in ``setup``. Every rank draws the same values, whatever their number.

    By default only what nobody has written to is drawn anew: modules that hold torch's untouched default draw. Loaded,
    trained and custom weights stay as they are, so the callback may sit in front of a pretrained model. What comes
    first in ``callbacks`` sees the old weights in its own ``on_fit_start``: put this one first.

    Args:
        scheme: see :func:`init_weights`.
        example: one batch of input; the module's ``example_input_array`` if not given and there is one
            (where that is constant, unit noise of its shape).
        match: patterns of what to initialise.
        skip: patterns of what to leave alone.
        bias: value of the biases; None leaves them alone.
        only_new: False to also draw anew what is not torch's untouched default.
        seed: of all draws; if not given, a number that follows from the state of torch's global stream (which is
            read, not moved), so that ``seed_everything`` decides.
        log: write the table, and with an example the picture, to the loggers.
        **options: more of :func:`init_weights`, such as ``residual``, ``class_counts`` or a named rule's ``gain``.

    Attributes:
        report: the :class:`InitReport` of the latest initialisation, None before.

    Raises:
        UserInputError: for an unknown scheme; in ``setup`` for parameters on the meta device whose module has no
            ``reset_parameters``; in ``on_fit_start`` for a pattern that fits nothing.

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> model = lt.MLP(64, 10, hidden_features=(32,))
        >>> trainer = L.Trainer(callbacks=[lt.WeightInit()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        scheme: Scheme = "auto",
        *,
        example: Any = None,
        match: str | Sequence[str] = "*",
        skip: str | Sequence[str] = (),
        bias: float | None = 0.0,
        only_new: bool = True,
        seed: int | None = None,
        log: bool = True,
        **options: Any,
    ) -> None:
        check_choice("scheme", scheme, SCHEMES)
        self.scheme = scheme
        self.example = example
        self.match = match
        self.skip = skip
        self.bias = bias
        self.only_new = only_new
        self.seed = seed
        self.log = log
        self.options = options
        self.report: InitReport | None = None
        self._small: dict[str, list[Tensor]] = {}
        self._done: weakref.ref[LightningModule] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the callback knows no model yet; weak references cannot be copied anyway."""
        return {**self.__dict__, "_done": None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give memory to meta parameters, and remember the small layers that are new."""
        if stage != "fit" or self._has_done(pl_module):
            return
        _give_memory(pl_module, self.seed or 0)
        # A small layer is known to be new by never having been written to, and DDP writes to it before on_fit_start.
        modules = {name: pl_module.get_submodule(name) for name in untouched_modules(pl_module)}
        self._small = {
            name: [p.detach().clone() for p in m.parameters(recurse=False)]
            for name, m in modules.items()
            if is_small(m)
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialise, unless the run resumes or the model has been initialised before."""
        if trainer.ckpt_path is not None or self._has_done(pl_module):
            return
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            warn_once(
                f"WeightInit does nothing under {type(trainer.strategy).__name__}, which has flattened or copied the "
                "parameters by now. Call init_weights in the module's __init__, or use ModelParallelStrategy."
            )
            return
        self._done = weakref.ref(pl_module)
        names: bool | list[str] = False
        if self.only_new:
            known = {name for name, values in self._small.items() if _same(pl_module.get_submodule(name), values)}
            names = trainer.strategy.broadcast(sorted(untouched_modules(pl_module, known=known)))
        seed = trainer.strategy.broadcast(_seed_of_stream() if self.seed is None else self.seed)
        with _default_dtype(trainer):
            self.report = init_weights(
                pl_module,
                self.scheme,
                example=self._example(trainer, pl_module),
                match=self.match,
                skip=self.skip,
                bias=self.bias,
                only_new=names,
                generator=torch.Generator().manual_seed(seed),
                **self.options,
            )
        self._small = {}
        if self.log:
            self._log(trainer, self.report)

    def _has_done(self, pl_module: LightningModule) -> bool:
        return self._done is not None and self._done() is pl_module

    def _example(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return rank zero's example on the module's device, in the type that the precision feeds the module."""
        example = self.example
        if example is None and pl_module.example_input_array is not None:
            example = apply_to_collection(pl_module.example_input_array, Tensor, _with_signal)
        if example is None:
            return None
        example = trainer.strategy.broadcast(move_data_to_device(example, pl_module.device))
        return trainer.precision_plugin.convert_input(example)

    def _log(self, trainer: Trainer, report: InitReport) -> None:
        log_table(trainer, "init/parameters", COLUMNS, report.table())
        if report.signals:
            from lightning_tricks.plots import signal_figure

            _, *columns = zip(*report.signals, strict=True)
            outputs = {"before": columns[0], "after": columns[1]}
            gradients = {"before": columns[2], "after": columns[3]}
            log_figure(trainer, "init/signal", signal_figure(outputs, gradients, title="initialisation"))


def _seed_of_stream() -> int:
    """Return a number that follows from the state of torch's global stream without moving it."""
    state = torch.get_rng_state().numpy().tobytes()
    return int.from_bytes(blake2b(state, digest_size=8).digest(), "little") >> 2


def _same(module: nn.Module, values: list[Tensor]) -> bool:
    """Whether a module's parameters still have these values; of shards, whether this process's do."""
    now = list(module.parameters(recurse=False))
    return len(now) == len(values) and all(
        a.shape == b.shape and torch.equal(_shard_of(a, a), _shard_of(b.to(a.dtype), a))
        for a, b in zip(now, values, strict=True)
    )


def _shard_of(values: Tensor, parameter: Tensor) -> Tensor:
    """Return, on the CPU, the part of some values that this process holds of a parameter; no collective call."""
    values = values.detach()
    if isinstance(parameter, DTensor):
        if not isinstance(values, DTensor):
            whole = values.to(parameter.device)
            values = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        values = values.to_local()
    return values.cpu()


def _default_dtype(trainer: Trainer) -> AbstractContextManager[Any]:
    """Return a context in which what a forward makes has the parameters' type, for ``*-true`` precisions only."""
    plugin = trainer.precision_plugin
    return plugin.forward_context() if str(plugin.precision).endswith("-true") else nullcontext()


def _with_signal(example: Tensor) -> Tensor:
    """Return unit noise in place of a constant, as which ``example_input_array`` often only tells a shape."""
    if example.is_floating_point() and bool((example == example.flatten()[:1]).all()):
        return torch.randn(example.shape, generator=torch.Generator().manual_seed(0), dtype=example.dtype)
    return example


def _give_memory(model: nn.Module, seed: int) -> None:
    """Replace meta parameters by real ones with their module's own default initialisation."""
    without = []
    for name, module in model.named_modules():
        if not any(t.is_meta for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            continue
        module.to_empty(device="cpu", recurse=False)
        reset = getattr(module, "reset_parameters", None)
        if reset is None:
            without.append(f"{name!r} ({type(module).__name__})")
            continue
        with isolated_rng(seed):
            reset()
    if without:  # only now: while anything has no memory, Lightning's teardown would hide this message
        raise UserInputError(
            "every module with parameters on the meta device must define reset_parameters(), but "
            f"{', '.join(without)} does not. Define it, or make the module on a real device."
        )
