"""Small nets, one for each way in which people write dropout, and the plain loop that they are compared with."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import DropBlock2d, StochasticDepth

IMAGE = (6, 4, 5, 5)
VOLUME = (6, 4, 3, 3, 3)
SEQUENCE = (6, 7, 8)
FLAT = (6, 12)


class Quiet(nn.Dropout):
    """A subclass whose name does not say what it does."""


class Functional(nn.Module):
    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x):
        return self.function(x, training=self.training, **self.options)


class AlwaysOn(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3, training=True)


class Recurrent(nn.Module):
    def __init__(self, cls, **options):
        super().__init__()
        self.net = cls(8, 6, num_layers=2, dropout=0.4, batch_first=True, **options)

    def forward(self, x):
        return self.net(x)[0]


class Attention(nn.Module):
    def __init__(self, *, need_weights):
        super().__init__()
        self.net = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.net(x, x, x, need_weights=self.need_weights)[0]


class Sdpa(nn.Module):
    """The way of Hugging Face: a probability that hangs on the module's own flag."""

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if self.training else 0.0)


class DroppedWeights(nn.Module):
    def forward(self, x):
        weights = (x @ x.transpose(-2, -1)).softmax(-1)
        return F.dropout(weights, 0.3, training=self.training) @ x


class FusedAttention(nn.Module):
    """The way of timm: a Dropout module that only lends its probability."""

    def __init__(self):
        super().__init__()
        self.qkv, self.drop = nn.Linear(8, 24), nn.Dropout(0.3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop.p if self.training else 0.0)
        return out.transpose(1, 2).flatten(2)


class DropPath(nn.Module):
    """Stochastic depth per row."""

    def forward(self, x):
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.7)
        return x * keep.div_(0.7)


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.5 * torch.randn_like(x) if self.training else x


class Gumbel(nn.Module):
    def forward(self, x):
        return F.gumbel_softmax(x, tau=1.0) if self.training else x.softmax(-1)


class TimeFirst(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.transpose(0, 1)).transpose(0, 1)


def _encoder(*, batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=batch_first)
    net = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return net if batch_first else TimeFirst(net)


# What to build, and the shape of its input.
MECHANISMS = {
    "Dropout": (lambda: nn.Dropout(0.4), FLAT),
    "Dropout in place": (lambda: nn.Dropout(0.4, inplace=True), FLAT),
    "subclass of Dropout": (lambda: Quiet(0.4), FLAT),
    "Dropout1d": (lambda: nn.Dropout1d(0.4), SEQUENCE),
    "Dropout2d": (lambda: nn.Dropout2d(0.4), IMAGE),
    "Dropout3d": (lambda: nn.Dropout3d(0.4), VOLUME),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.3), FLAT),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.3), IMAGE),
    "F.dropout": (lambda: Functional(F.dropout, p=0.3), FLAT),
    "F.dropout2d": (lambda: Functional(F.dropout2d, p=0.3), IMAGE),
    "F.dropout(training=True)": (AlwaysOn, FLAT),
    "LSTM": (lambda: Recurrent(nn.LSTM, bidirectional=True), SEQUENCE),
    "GRU": (lambda: Recurrent(nn.GRU), SEQUENCE),
    "RNN": (lambda: Recurrent(nn.RNN), SEQUENCE),
    "MultiheadAttention": (lambda: Attention(need_weights=False), SEQUENCE),
    "MultiheadAttention with weights": (lambda: Attention(need_weights=True), SEQUENCE),
    "SDPA if training": (Sdpa, SEQUENCE),
    "dropped attention weights": (DroppedWeights, SEQUENCE),
    "fused attention": (FusedAttention, SEQUENCE),
    "TransformerEncoder batch first": (lambda: _encoder(batch_first=True), SEQUENCE),
    "TransformerEncoder time first": (lambda: _encoder(batch_first=False), SEQUENCE),
    "StochasticDepth": (lambda: StochasticDepth(0.3, "row"), IMAGE),
    "DropBlock2d": (lambda: DropBlock2d(0.2, 3), IMAGE),
    "DropPath": (DropPath, IMAGE),
    "RReLU": (lambda: nn.RReLU(0.1, 0.9), FLAT),
    "randn_like if training": (Noise, FLAT),
    "gumbel_softmax if training": (Gumbel, FLAT),
}


class Around(nn.Module):
    """A deterministic layer with batch norm before, a linear one after."""

    def __init__(self, inner, shape):
        super().__init__()
        self.norm = nn.BatchNorm1d(shape[1])
        self.inner = inner
        self.head = nn.Linear(shape[-1] if not isinstance(inner, Recurrent) else 6, 3)
        if isinstance(inner, Recurrent) and inner.net.bidirectional:
            self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.norm(x.flatten(2)).reshape(x.shape) if x.ndim > 2 else self.norm(x)
        return self.head(self.inner(torch.tanh(x)))


def net_and_input(name):
    """Return the net in eval mode, its norm with statistics of its own, and a batch."""
    make, shape = MECHANISMS[name]
    net = Around(make(), shape)
    net.norm.running_mean.uniform_(-0.5, 0.5)
    net.norm.running_var.uniform_(0.5, 2)
    return net.eval(), torch.randn(shape)


def plain_samples(net, x, samples):
    """Return samples the obvious way: training mode, norm layers in eval; rows draw their own, so many at a time."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    at_once = 1 if isinstance(net.inner, DropBlock2d) else samples // 4  # DropBlock normalises over the batch
    with torch.no_grad():
        out = [net(x.repeat(at_once, *[1] * (x.ndim - 1))) for _ in range(samples // at_once)]
    net.eval()
    return torch.cat(out).unflatten(0, (-1, len(x)))
