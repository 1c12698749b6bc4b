"""The checker behind jaxtyping's import hook: array shapes only.

Whole-signature checking would answer a misspelt ``Literal`` before our own message could, and the messages are what
the tests of bad input are about.
"""

from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function):
    """Check the annotations of ``function`` that mention an array; leave every other one alone."""
    annotations = getattr(function, "__annotations__", None)
    if not annotations:
        return function
    function.__annotations__ = {name: hint if _mentions_array(hint) else Any for name, hint in annotations.items()}
    return beartype(function)


def _mentions_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_mentions_array(part) for part in get_args(hint))
