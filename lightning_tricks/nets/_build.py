"""Torchvision's classification architectures with a dropout head of the wanted size."""

from typing import Any

import torchvision
from torch import nn

from lightning_tricks._base import check_choice, check_range


def build_net(
    name: str,
    num_classes: int,
    *,
    dropout: float = 0.5,
    in_channels: int = 3,
    weights: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a torchvision classifier whose last layer is ``Dropout`` then ``Linear(..., num_classes)``.

    Where the architecture already drops out before its last layer, that dropout gets the wanted probability.

    Args:
        name: any classification architecture of ``torchvision.models.list_models``, such as ``"resnet18"``.
        num_classes: width of the new head.
        dropout: probability of the dropout before the head, in [0, 1).
        in_channels: channels of the pictures; other than 3 gives a new first convolution.
        weights: name of pretrained weights, such as ``"DEFAULT"`` (torchvision downloads them); None for none.
        **options: passed to the architecture, such as ``image_size=64`` for a vision transformer.

    Raises:
        UserInputError: for an unknown name, with the list, or a number out of range.

    Example:
        >>> net = build_net("resnet18", num_classes=10, dropout=0.2)
        >>> net.fc
        Sequential(
          (0): Dropout(p=0.2, inplace=False)
          (1): Linear(in_features=512, out_features=10, bias=True)
        )
    """
    check_choice("architecture", name, torchvision.models.list_models(module=torchvision.models))
    check_range("num_classes", num_classes, low=1)
    check_range("in_channels", in_channels, low=1)
    check_range("dropout", dropout, low=0, high=1, open_high=True)
    net: nn.Module = torchvision.models.get_model(name, weights=weights, **options)
    if hasattr(net, "aux_logits"):  # inception and googlenet return a tuple in training while they have these
        setattr(net, "aux_logits", False)
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(net, auxiliary):
                setattr(net, auxiliary, None)
    _replace_head(net, num_classes, dropout)
    if in_channels != 3:
        _replace_stem(net, in_channels)
    return net


def _replace_head(net: nn.Module, num_classes: int, dropout: float) -> None:
    path, head = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    new: nn.Module
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    else:  # squeezenet ends in a 1×1 convolution
        new = nn.Conv2d(head.in_channels, num_classes, kernel_size=1)
    parent, key = _parent(net, path)
    before = list(parent.children())[: list(parent.children()).index(head)]
    if before and isinstance(before[-1], nn.Dropout):
        before[-1].p, before[-1].inplace = dropout, False
        setattr(parent, key, new)
    else:
        setattr(parent, key, nn.Sequential(nn.Dropout(dropout), new))
    if hasattr(net, "num_classes"):
        setattr(net, "num_classes", num_classes)


def _replace_stem(net: nn.Module, in_channels: int) -> None:
    path, stem = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    parent, key = _parent(net, path)
    new = nn.Conv2d(
        in_channels,
        stem.out_channels,
        kernel_size=stem.kernel_size,  # type: ignore[arg-type]  # a Conv2d keeps its sizes as plain tuples
        stride=stem.stride,  # type: ignore[arg-type]
        padding=stem.padding,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    setattr(parent, key, new)
    if getattr(net, "transform_input", False):  # inception's own re-normalisation is for three channels
        setattr(net, "transform_input", False)


def _parent(net: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, key = path.rpartition(".")
    return net.get_submodule(parent), key
