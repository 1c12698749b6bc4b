"""A small convolutional network."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from lightning_tricks._base import check_choice, check_range
from lightning_tricks.nets._layers import ACTIVATIONS, Activation, Norm


class ConvNet(nn.Module):
    """Convolutional net: per stage 3×3 convolution, norm, activation, 2×2 max-pool; global mean; dropout; linear head.

    Args:
        in_channels: channels of the pictures.
        num_classes: width of the output layer.
        channels: width of each stage; every stage halves the picture, as long as it is larger than 1 pixel.
        activation: non-linearity after each convolution.
        norm: ``"batch"`` (BatchNorm2d), ``"layer"`` (GroupNorm with one group) or ``"none"``.
        dropout: probability with which a feature is dropped before the head, in [0, 1).

    Raises:
        UserInputError: for an unknown name or a size that is not positive.

    Example:
        >>> import torch
        >>> ConvNet(1, 10, channels=(8, 16))(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        channels: Sequence[int] = (32, 64, 128),
        *,
        activation: Activation = "relu",
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("norm", norm, ("batch", "layer", "none"))
        check_range("dropout", dropout, low=0, high=1, open_high=True)
        for what, size in (("in_channels", in_channels), ("num_classes", num_classes)):
            check_range(what, size, low=1)
        self.in_channels = in_channels
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        width = in_channels
        for out in channels:
            check_range("every entry of channels", out, low=1)
            layers.append(nn.Conv2d(width, out, kernel_size=3, padding=1, bias=norm != "batch"))
            if norm != "none":
                layers.append(nn.BatchNorm2d(out) if norm == "batch" else nn.GroupNorm(1, out))
            layers += [ACTIVATIONS[activation](), nn.MaxPool2d(2, ceil_mode=True)]
            width = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B C"]:
        """Return one row of logits per picture."""
        output: Tensor = self.head(self.pool(self.features(x)))
        return output
