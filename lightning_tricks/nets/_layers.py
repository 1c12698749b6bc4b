"""The names that the networks share."""

from collections.abc import Callable
from typing import Literal

from torch import nn

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "selu", "elu"]
Norm = Literal["batch", "layer", "none"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "selu": nn.SELU,
    "elu": nn.ELU,
}
