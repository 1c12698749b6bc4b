"""The rules: each fills one weight tensor in place and returns it. Random ones take a generator.

Weights have torch's layout: outputs first, then inputs, then the kernel. ``fans`` says how many inputs one output sums
over and how many outputs one input reaches; it is worked out from the shape unless given (transposed and grouped
convolutions give it, see :func:`fans_of`).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lightning_tricks._base import UserInputError, check_choice, check_range

Weight = Float[Tensor, "..."]
Fans = tuple[float, float]
Mode = Literal["fan_in", "fan_out", "fan_avg"]
Rule = Callable[..., Tensor]

# The standard deviation of a unit normal cut off at two deviations.
_CUT_STD = 0.87962566103423978


def fans_of_shape(shape: torch.Size) -> Fans:
    """Return fan-in and fan-out of a weight of this shape.

    Raises:
        UserInputError: if it has fewer than two dimensions: a bias has no fans.

    Example:
        >>> fans_of_shape(torch.Size([8, 3, 5, 5]))
        (75.0, 200.0)
    """
    if len(shape) < 2:
        raise UserInputError(
            f"this rule needs a weight of at least 2 dimensions (outputs, inputs, ...), but got the shape "
            f"{tuple(shape)}. Use 'constant' or 'normal' for vectors."
        )
    field = math.prod(shape[2:])
    return float(shape[1] * field), float(shape[0] * field)


def fans_of(module: nn.Module, weight: Tensor) -> Fans:
    """Return the true fans of a module's weight, with groups and the layout and stride of transposed convolutions.

    Example:
        >>> conv = nn.Conv2d(8, 8, 3, groups=8)
        >>> fans_of(conv, conv.weight)
        (9.0, 9.0)
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        field = math.prod(module.kernel_size)
        inputs = module.in_channels // module.groups * field
        outputs = module.out_channels // module.groups * field
        step = math.prod(module.stride)
        # A stride thins out the sums of a transposed convolution, and the uses of an input of a plain one.
        return (inputs / step, float(outputs)) if module.transposed else (float(inputs), outputs / step)
    return fans_of_shape(weight.shape)


def zeros(weight: Weight, *, generator: Generator | None = None) -> Weight:
    """Fill with 0. Every unit of a layer then stays the same for ever: the lecture's example of what not to do."""
    return weight.zero_()


def constant(weight: Weight, *, value: float = 0.0, generator: Generator | None = None) -> Weight:
    """Fill with ``value``."""
    return weight.fill_(value)


def normal(weight: Weight, *, std: float = 0.01, mean: float = 0.0, generator: Generator | None = None) -> Weight:
    """Draw from N(mean, std²)."""
    check_range("std", std, low=0)
    return weight.normal_(mean, std, generator=generator)


def uniform(weight: Weight, *, bound: float = 0.05, generator: Generator | None = None) -> Weight:
    """Draw from U(-bound, bound)."""
    check_range("bound", bound, low=0)
    return weight.uniform_(-bound, bound, generator=generator)


def trunc_normal(weight: Weight, *, std: float = 0.02, generator: Generator | None = None) -> Weight:
    """Draw from a normal distribution cut off at two deviations and widened so that what is left has ``std``."""
    check_range("std", std, low=0)
    if std == 0:
        return weight.zero_()
    wide = std / _CUT_STD
    nn.init.trunc_normal_(weight, std=wide, a=-2 * wide, b=2 * wide, generator=generator)
    return weight


def xavier_normal(
    weight: Weight, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Weight:
    """Draw from N(0, gain² · 2 / (fan_in + fan_out)) (Glorot & Bengio 2010, equation 16).

    A lecture's 1 / (d_in + d_out) is half of that variance: ``gain=0.5**0.5``.

    Example:
        >>> w = xavier_normal(torch.empty(300, 500), generator=torch.Generator().manual_seed(0))
        >>> abs(float(w.std()) - (2 / 800) ** 0.5) < 1e-3
        True
    """
    return normal(weight, std=_std(weight, gain, "fan_avg", fans), generator=generator)


def xavier_uniform(
    weight: Weight, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Weight:
    """Draw uniformly with the variance of :func:`xavier_normal`."""
    return uniform(weight, bound=math.sqrt(3) * _std(weight, gain, "fan_avg", fans), generator=generator)


def kaiming_normal(
    weight: Weight,
    *,
    slope: float = 0.0,
    gain: float | None = None,
    mode: Mode = "fan_in",
    fans: Fans | None = None,
    generator: Generator | None = None,
) -> Weight:
    """Draw from N(0, gain² / fan) with gain² = 2 / (1 + slope²) (He et al. 2015, equations 10, 14 and 15).

    Args:
        weight: what to fill.
        slope: of the rectifier's negative side; 0 for ReLU.
        gain: instead of the slope's.
        mode: ``"fan_in"`` keeps the activations' variance, ``"fan_out"`` the gradients'.
        fans: fan-in and fan-out if not those of the shape.
        generator: where to draw from; torch's global stream if not given.
    """
    gain = math.sqrt(2 / (1 + slope**2)) if gain is None else gain
    return normal(weight, std=_std(weight, gain, mode, fans), generator=generator)


def kaiming_uniform(
    weight: Weight,
    *,
    slope: float = 0.0,
    gain: float | None = None,
    mode: Mode = "fan_in",
    fans: Fans | None = None,
    generator: Generator | None = None,
) -> Weight:
    """Draw uniformly with the variance of :func:`kaiming_normal`."""
    gain = math.sqrt(2 / (1 + slope**2)) if gain is None else gain
    return uniform(weight, bound=math.sqrt(3) * _std(weight, gain, mode, fans), generator=generator)


def lecun_normal(
    weight: Weight, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Weight:
    """Draw from N(0, gain² / fan_in): unit variance through a linear layer (LeCun et al. 1998), the one for SELU."""
    return normal(weight, std=_std(weight, gain, "fan_in", fans), generator=generator)


def lecun_uniform(
    weight: Weight, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Weight:
    """Draw uniformly with the variance of :func:`lecun_normal`."""
    return uniform(weight, bound=math.sqrt(3) * _std(weight, gain, "fan_in", fans), generator=generator)


def orthogonal(weight: Weight, *, gain: float = 1.0, generator: Generator | None = None) -> Weight:
    """Draw a random (semi-)orthogonal matrix of outputs by everything else, times ``gain`` (Saxe et al. 2014)."""
    fans_of_shape(weight.shape)
    return _draw_orthogonal(weight, gain, generator)


def delta_orthogonal(weight: Weight, *, gain: float = 1.0, generator: Generator | None = None) -> Weight:
    """Zero but for the kernel's centre, which is orthogonal (Xiao et al. 2018, algorithm 1): for convolutions.

    Raises:
        UserInputError: for a kernel of even size (it has no centre), fewer outputs than inputs, or no kernel at all.
    """
    if weight.ndim < 3 or any(size % 2 == 0 for size in weight.shape[2:]) or weight.shape[0] < weight.shape[1]:
        raise UserInputError(
            "delta_orthogonal needs the weight of a convolution with an odd kernel and at least as many outputs as "
            f"inputs, but got the shape {tuple(weight.shape)}. Use match= to name other layers, or 'orthogonal'."
        )
    _draw_orthogonal(_centre(weight.zero_()), gain, generator)
    return weight


def identity(weight: Weight, *, gain: float = 1.0, generator: Generator | None = None) -> Weight:
    """Pass the inputs through, times ``gain``: the unit matrix, or its convolution (Le et al. 2015 for recurrence)."""
    fans_of_shape(weight.shape)
    _centre(weight.zero_()).fill_diagonal_(gain)
    return weight


RULES: dict[str, Rule] = {
    "constant": constant,
    "delta_orthogonal": delta_orthogonal,
    "identity": identity,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
    "lecun_normal": lecun_normal,
    "lecun_uniform": lecun_uniform,
    "normal": normal,
    "orthogonal": orthogonal,
    "trunc_normal": trunc_normal,
    "uniform": uniform,
    "xavier_normal": xavier_normal,
    "xavier_uniform": xavier_uniform,
    "zeros": zeros,
}


def _draw_orthogonal(weight: Tensor, gain: float, generator: Generator | None) -> Tensor:
    # torch has no QR decomposition for half precision.
    exact = weight.dtype if weight.dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32
    matrix = torch.empty(weight.shape, dtype=exact, device=weight.device)
    return weight.copy_(nn.init.orthogonal_(matrix, gain, generator=generator))


def _centre(weight: Tensor) -> Tensor:
    """Return the view of outputs by inputs at the middle of the kernel."""
    for size in weight.shape[2:]:
        weight = weight.select(2, size // 2)
    return weight


def _std(weight: Tensor, gain: float, mode: Mode, fans: Fans | None) -> float:
    check_choice("mode", mode, ("fan_avg", "fan_in", "fan_out"))
    check_range("gain", gain, low=0)
    fan_in, fan_out = fans_of_shape(weight.shape) if fans is None else fans
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    return gain / math.sqrt(fan) if fan else 0.0
