"""Test-time augmentation in a Trainer."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_tricks._base import UserInputError, check_range, preserved_modes
from lightning_tricks.modules.monte_carlo._batches import (
    RowPlaces,
    Task,
    infer_task,
    split_inputs,
    to_summary_form,
)
from lightning_tricks.uncertainty import SampleStream


class Views(Protocol):
    """Makes view number ``epoch`` of a batch; a ``BatchAugment`` is one."""

    def __call__(self, images: Tensor, *, index: Tensor, epoch: int, normalized: bool) -> Any:
        """Return an object whose ``images`` are ``(B, C, H, W)``."""


class TTAPredictor(LightningModule):
    """Predicts from several augmented views of each picture, and averages (test-time augmentation).

    ``trainer.predict`` returns one dict per batch, with the same names as
    :class:`~lightning_tricks.MCDropoutPredictor`: ``mean`` over the views, ``std``, and for classification ``label``,
    ``confidence``, ``entropy``, ``mutual_info`` and more. View ``s`` is one and the same transformation for all
    pictures, so the result depends neither on the batch nor on the rank. The model runs in eval mode.

    Args:
        model: any LightningModule or ``nn.Module``; see ``MCDropoutPredictor`` for what its ``forward`` gives.
        views: a :class:`~lightning_tricks.BatchAugment`. With more than geometry in its list it needs the ``mean`` and
            ``std`` that the pictures were normalised with.
        samples: number of views, at least 2.
        task: ``"binary"``, ``"multiclass"``, ``"multilabel"`` or ``"regression"``; ``"auto"`` asks ``model.task``.
        original: whether the first view is the picture as it is.
        output: picks the tensor out of what the model returns.
        logits: whether a classifier returns logits (else probabilities).
        split: returns inputs and targets (or None) of a batch that is no tensor or ``(inputs, targets)``.

    Raises:
        UserInputError: for options out of range, a task that nobody tells, or inputs that are no pictures.

    Reference:
        Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", section 4.1.

    Example:
        >>> import torch, lightning_tricks as lt
        >>> from lightning_tricks.data.augment import HorizontalFlip
        >>> model = lt.Classifier(lt.ConvNet(3, 4, channels=(4,)), num_classes=4)
        >>> predictor = TTAPredictor(model, lt.BatchAugment([HorizontalFlip()]), samples=4)
        >>> prediction = predictor.predict_step(torch.rand(5, 3, 8, 8))
        >>> prediction["mean"].shape, prediction["std"].shape
        (torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        samples: int = 8,
        *,
        task: Task | Literal["auto"] = "auto",
        original: bool = True,
        output: Callable[[Any], Any] | None = None,
        logits: bool = True,
        split: Callable[[Any], tuple[Any, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.views = views
        self.samples = int(check_range("samples", samples, low=2))
        self._places = RowPlaces()
        self.task = infer_task(model, task)
        self.original = original
        self.output, self.logits, self.split = output, logits, split

    def forward(self, *inputs: Any) -> Any:
        """Return what the model returns for the pictures as they are."""
        return self.model(*inputs)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the summaries of a batch, each with the rows on its first axis."""
        inputs, _ = split_inputs(batch, self.split)
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
            raise UserInputError(
                "TTAPredictor needs batches with one tensor of pictures (B, C, H, W), but got "
                f"{[tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in inputs]}. "
                "Pick it with split=lambda batch: (batch['image'], None)."
            )
        images = inputs[0]
        stream = SampleStream(self.task)
        with preserved_modes(self.model), torch.no_grad():
            self.model.eval()
            for number in range(self.samples):
                stream.update(to_summary_form(self._one(images, number), self.task, logits=self.logits))
        index = self._places.of(self._trainer, batch, len(images), batch_idx, dataloader_idx)
        return {**stream.compute(), "index": index}

    def _one(self, images: Tensor, number: int) -> Any:
        """Return the model's output for one view, with an axis for the view in front."""
        if number or not self.original:
            same = torch.zeros(len(images), dtype=torch.int64, device=images.device)  # one draw for all pictures
            images = self.views(images, index=same, epoch=number, normalized=True).images.to(images.dtype)
        out = self.model(images)
        out = out if self.output is None else self.output(out)
        return tuple(part[None] for part in out) if isinstance(out, tuple | list) else _with_axis(out)


def _with_axis(out: Any) -> Any:
    return out[None] if isinstance(out, Tensor) else out
