"""The blocks of a network, from input to output, for learning rates that fall with depth."""

from collections.abc import Iterator

from torch import nn


def blocks(model: nn.Module) -> list[list[str]]:
    """Return the parameter names block by block, in order of registration.

    A block is one item of a stack (``nn.Sequential`` or ``nn.ModuleList``), such as a residual or a transformer block,
    or a layer outside any stack. What holds no weight of two dimensions (a norm) belongs to the block before it.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
        >>> blocks(net)
        [['0.weight', '0.bias', '1.weight', '1.bias'], ['2.weight', '2.bias']]
    """
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    found: list[list[str]] = []
    for prefix, own_only in _walk(model, "", in_stack=False):
        names = [name for name in shapes if _is_below(name, prefix, own_only)]
        if not names:
            continue
        if found and all(shapes[name] < 2 for name in names):
            found[-1] += names
        else:
            found.append(names)
    return found


def _is_below(name: str, prefix: str, own_only: bool) -> bool:
    path, _, _ = name.rpartition(".")
    return path == prefix or (not own_only and (name.startswith(f"{prefix}.") or not prefix))


def _walk(module: nn.Module, path: str, *, in_stack: bool) -> Iterator[tuple[str, bool]]:
    """Yield each block's path, and whether only the parameters of the module itself are meant."""
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    if not children or (in_stack and not _is_stack(module)) or not any(map(_is_stack, module.modules())):
        if children and not in_stack and not path:  # a root without any stack: its layers are the blocks
            yield path, True
            yield from ((name, False) for name, _ in children)
        else:
            yield path, False
        return
    yield path, True
    kinds = [type(child) for _, child in children]
    repeated = _is_stack(module) and len(set(kinds)) < len(kinds)
    for name, child in children:
        yield from _walk(child, f"{path}.{name}" if path else name, in_stack=repeated)


def _is_stack(module: nn.Module) -> bool:
    return type(module) in (nn.Sequential, nn.ModuleList)  # a subclass is somebody's block
