"""Plain ``nn.Module`` networks."""

from lightning_tricks.nets._build import build_net as build_net
from lightning_tricks.nets._conv import ConvNet as ConvNet
from lightning_tricks.nets._convert_norm import convert_norm as convert_norm
from lightning_tricks.nets._mlp import MLP as MLP
