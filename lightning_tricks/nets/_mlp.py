"""The multi-layer perceptron of the lecture."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from lightning_tricks._base import check_choice, check_range
from lightning_tricks.nets._layers import ACTIVATIONS, Activation, Norm


class MLP(nn.Module):
    """Multi-layer perceptron: per hidden layer linear, norm, activation, dropout; then a linear output layer.

    The norm comes before the activation (Ioffe & Szegedy 2015, section 3.2), and a linear layer that a batch norm
    follows has no bias, since the norm would remove it. Inputs of any shape are flattened per sample.

    Args:
        in_features: numbers per sample after flattening.
        num_classes: width of the output layer (for regression: number of targets).
        hidden_features: width of each hidden layer; empty for a linear model.
        activation: non-linearity of the hidden layers.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        dropout: probability with which a hidden unit is dropped, in [0, 1).

    Raises:
        UserInputError: for an unknown name or a size that is not positive.

    Example:
        >>> import torch
        >>> MLP(64, 10, hidden_features=(32,), dropout=0.5)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int = 10,
        num_classes: int = 2,
        hidden_features: Sequence[int] = (20,),
        *,
        activation: Activation = "relu",
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("norm", norm, ("batch", "layer", "none"))
        check_range("dropout", dropout, low=0, high=1, open_high=True)
        for what, size in (("in_features", in_features), ("num_classes", num_classes)):
            check_range(what, size, low=1)
        for size in hidden_features:
            check_range("every entry of hidden_features", size, low=1)
        self.in_features = in_features
        self.num_classes = num_classes
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_features
        for hidden in hidden_features:
            layers.append(nn.Linear(width, hidden, bias=norm != "batch"))
            if norm != "none":
                layers.append(nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: Float[Tensor, "B *shape"]) -> Float[Tensor, "B C"]:
        """Return one row of logits (or targets) per sample."""
        output: Tensor = self.layers(x)
        return output
