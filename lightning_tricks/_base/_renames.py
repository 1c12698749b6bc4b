"""Arguments that got another name: the old spelling works for a release and says the new one."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from lightning_tricks._base._messages import UserInputError

F = TypeVar("F", bound=Callable[..., Any])

# By public class or function: old spelling -> new one, the word of its counterpart in Lightning, torch or Keras.
RENAMED_ARGUMENTS: dict[str, dict[str, str]] = {
    "Diagnosis": {"report": "report_path"},
    "EarlyStopping": {"min_delta_kind": "min_delta_mode"},
    "Preflight": {"on_error": "on_finding"},
    "ReduceLROnPlateau": {"after": "start_from"},
    "cross_validate": {"trainer": "trainer_kwargs"},
    "fit_stacked": {"trainer": "trainer_kwargs"},
    "join": {"trainer": "trainer_kwargs"},
    "search": {"trainer": "trainer_kwargs"},
}


def accepts_old_names(owner: str) -> Callable[[F], F]:
    """Let a function take the old spellings of its arguments, with a ``DeprecationWarning`` that names the new one.

    Args:
        owner: its key in :data:`RENAMED_ARGUMENTS`; the class's name for an ``__init__``.

    Raises:
        UserInputError: at a call that gives both spellings.

    Example:
        >>> import lightning_tricks as lt
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     plateau = lt.ReduceLROnPlateau("val_loss", after=3)
        >>> plateau.start_from, said[0].category.__name__
        (3, 'DeprecationWarning')
    """
    renamed = RENAMED_ARGUMENTS[owner]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def with_old_names(*args: Any, **kwargs: Any) -> Any:
            for old, new in renamed.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise UserInputError(f"{owner} got {new}= and {old}=, its old name. Give {new}= only.")
                warnings.warn(
                    f"{owner}({old}=) is called {new}= now; the old name goes with the next release.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old_names  # type: ignore[return-value]  # the same arguments, and the old names of some

    return decorate
