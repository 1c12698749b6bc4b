"""Networks: shapes, sizes, heads, messages."""

import pytest
import torch
from torch import nn

from lightning_tricks import MLP, ConvNet, build_net
from lightning_tricks._base import UserInputError


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 2, 6)])
def test_mlp_takes_any_input_shape(norm, shape):
    net = MLP(12, 5, hidden_features=(7, 6), norm=norm, dropout=0.1)
    assert net(torch.rand(4, *shape)).shape == (4, 5)


def test_mlp_order_is_linear_norm_activation_dropout():
    kinds = [type(m) for m in MLP(4, 2, hidden_features=(3,), dropout=0.5).layers]
    assert kinds == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]


def test_mlp_without_hidden_layers_is_linear():
    net = MLP(4, 2, hidden_features=())
    x, y = torch.rand(3, 4), torch.rand(3, 4)
    torch.testing.assert_close(net(x) + net(y) - net(torch.zeros(3, 4)), net(x + y))


def test_shapes_are_checked_while_testing():
    """The canary: without the jaxtyping hook a wrong rank would pass silently."""
    with pytest.raises(Exception, match="channels height width"):
        ConvNet(3, 2)(torch.rand(3, 8, 8))


@pytest.mark.parametrize("size", [5, 8, 32])
def test_convnet_takes_any_size(size):
    assert ConvNet(3, 4, channels=(4, 8, 16))(torch.rand(2, 3, size, size)).shape == (2, 4)


FAMILIES = {
    "resnet18": (64, {}),
    "vgg11": (32, {}),
    "densenet121": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "efficientnet_b0": (32, {}),
    "convnext_tiny": (32, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (32, {}),
    "squeezenet1_1": (64, {}),
    "googlenet": (64, {"init_weights": False}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_build_net_gives_every_family_a_dropout_head(name):
    size, options = FAMILIES[name]
    net = build_net(name, num_classes=7, dropout=0.25, in_channels=1, **options)
    net.train()
    (dropout,) = [m for m in net.modules() if isinstance(m, nn.Dropout) and m.p == 0.25]
    (head,) = [m for m in net.modules() if 7 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    seen = []
    dropout.register_forward_hook(lambda module, args, output: seen.append(output))
    head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    assert net(torch.rand(2, 1, size, size)).shape == (2, 7)
    assert len(seen) == 2
    assert seen[0] is seen[1], "what the dropout gives is what the head takes"


def test_a_new_first_convolution_ends_the_renormalisation_of_three_channels():
    net = build_net("googlenet", 2, in_channels=1, transform_input=True, init_weights=False).eval()
    assert net(torch.rand(1, 1, 32, 32)).shape == (1, 2)


def test_convnet_without_norms_has_biases():
    net = ConvNet(channels=(4, 8), norm="none")
    assert [type(m).__name__ for m in net.features] == ["Conv2d", "ReLU", "MaxPool2d"] * 2
    assert all(m.bias is not None for m in net.features if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_net("resnet81", 2), "architecture must be one of .*resnet18.*got 'resnet81'"),
        (lambda: build_net("resnet18", 0), r"num_classes must be in \[1, inf\), but got 0"),
        (lambda: MLP(activation="rleu"), "Did you mean 'relu'"),
        (lambda: MLP(norm="instance"), "norm must be one of batch, layer, none"),
        (lambda: MLP(dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: MLP(hidden_features=(0,)), "every entry of hidden_features"),
        (lambda: ConvNet(channels=(4, -1)), "every entry of channels"),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()
