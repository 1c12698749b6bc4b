"""What a parameter is, before and after its shape is known."""

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from lightning_tricks._base._messages import UserInputError

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # batch and instance norms


def is_matrix(module: nn.Module, key: str, parameter: Tensor) -> bool:
    """Whether a module's own parameter has two dimensions or more; a lazy one is told by its name.

    Example:
        >>> layer, norm = nn.LazyLinear(3), nn.LazyBatchNorm1d()
        >>> [is_matrix(module, key, p) for module in (layer, norm) for key, p in module.named_parameters()]
        [True, False, False, False]
    """
    if is_lazy(parameter):
        return key != "bias" and not isinstance(module, NORMS)
    return parameter.ndim >= 2 and not _is_gain(module, key)


def hook_of_gain(module: nn.Module, key: str) -> WeightNorm | None:
    """Return the hook of the older weight norm whose gain a parameter is, None for any other parameter."""
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm))
    return next((hook for hook in hooks if key == f"{hook.name}_g"), None)


def _is_gain(module: nn.Module, key: str) -> bool:
    """Whether a parameter is a magnitude of weight norm: a weight's dimensions, but one value per unit."""
    if isinstance(module, ParametrizationList):
        return key == "original0" and any(type(p).__name__ == "_WeightNorm" for p in module)
    return hook_of_gain(module, key) is not None


def require_sizes(model: nn.Module, who: str) -> None:
    """Refuse a model some of whose parameters are lazy.

    Args:
        model: any module.
        who: who needs the sizes, for the message.

    Raises:
        UserInputError: naming the first lazy parameters, and what to do.
    """
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise UserInputError(
            f"{who} needs the sizes of all parameters, but {', '.join(lazy[:3])}{', ...' * (len(lazy) > 3)} are lazy. "
            "Run one batch through the model first."
        )
