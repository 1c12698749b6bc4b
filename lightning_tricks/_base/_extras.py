"""Optional dependencies are absent until asked for."""

from importlib import import_module
from types import ModuleType


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra to install.

    Args:
        module: dotted name of the module.
        extra: the extra of lightning-tricks that brings it.
        purpose: what needs it, the subject of the sentence.

    Raises:
        ModuleNotFoundError: if it is not installed.

    Example:
        >>> require_extra("no_such_module", "tune", "search()")
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: search() needs 'no_such_module', which is not installed. Run: pip install ...
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f'{purpose} needs {module!r}, which is not installed. Run: pip install "lightning-tricks[{extra}]"',
            name=error.name,
        ) from None
