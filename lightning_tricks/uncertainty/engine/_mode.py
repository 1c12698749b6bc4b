"""A torch function mode that finds every random call of a forward pass and feeds it keyed numbers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lightning_tricks.uncertainty.engine._draws import Draws
from lightning_tricks.uncertainty.engine._tape import PrefixTape

# What autocast runs in low precision. functorch's rules for batched tensors come before autocast's and pass it by.
_LOW_PRECISION = frozenset(
    (F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm)
)


def _autocast(args: Any, kwargs: Any) -> Any:
    device = args[0].device.type
    if not torch.is_autocast_enabled(device):
        return args, kwargs
    dtype = torch.get_autocast_dtype(device)

    def lower(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return tree_map(lower, (args, kwargs))


@dataclass(frozen=True)
class StochasticSite:
    """One place of the net where random numbers are drawn.

    Args:
        name: path of the module that makes the call, and which of its random calls it is (``"head.drop#0"``).
        kind: the call: ``"dropout"``, ``"attention dropout"``, ``"normal noise"``, ...
        p: probability of dropping, in (0, 1); None where there is none.
        how: ``"turned on"`` for what rests in eval mode, ``"always on"`` for what the net draws anyway,
            ``"inserted"`` for what was asked for.
    """

    name: str
    kind: str
    p: float | None
    how: str


class SiteBook:
    """Where we are in the net, what was drawn there, and what is to be switched on.

    Args:
        chosen: names of the modules inside which dropout is switched on; None for everywhere.
        p: probability of dropping to use instead of each site's own; None to keep them.
    """

    def __init__(self, *, chosen: frozenset[str] | None = None, p: float | None = None) -> None:
        self.chosen, self.p = chosen, p
        self.flagged: frozenset[str] = frozenset()  # modules whose own training flag is up
        self.stack: list[str] = [""]
        self.sites: dict[str, StochasticSite] = {}
        self.resting: set[str] = set()  # dropout calls seen with p = 0, or outside `chosen`
        self._count: Counter[str] = Counter()
        self._woken = False  # inside a torch function that was handed training=True by us

    def start_pass(self) -> None:
        """Forget the position in the net, not what was found."""
        self.stack = [""]
        self._count.clear()

    @contextmanager
    def waking(self, asleep: bool) -> Iterator[None]:
        """Mark the calls of a block as switched on by us, if they would rest otherwise."""
        before, self._woken = self._woken, self._woken or asleep
        try:
            yield
        finally:
            self._woken = before

    def wanted(self) -> bool:
        """Whether dropout is switched on here."""
        return self.chosen is None or any(name in self.chosen for name in self.stack)

    def open(self, kind: str, p: float | None, training: bool, *, inserted: bool = False) -> tuple[str, float] | None:
        """Return name and probability for a random call that is on, None for one that rests."""
        own = p
        if p is not None and self.p is not None and self.wanted() and not inserted:
            p = self.p
        off = (p is not None and p <= 0) or not (training or self.wanted() or inserted)
        name = self._next_name()
        if off:
            self.resting.add(f"{name} ({kind}, p={own})")
            return None
        if name not in self.sites:
            up = not training or self._woken or self.stack[-1] in self.flagged
            how = "inserted" if inserted else "turned on" if up else "always on"
            self.sites[name] = StochasticSite(name, kind, p, how)
        return name, 0.0 if p is None else p

    def _next_name(self) -> str:
        place = self.stack[-1]
        number = self._count[place]
        self._count[place] += 1
        return f"{place or 'model'}#{number}"


class StochasticMode(TorchFunctionMode):
    """Every torch call of one pass goes through here: random ones to their handler, the rest to the tape.

    Args:
        draws: the pass's random numbers.
        book: sites and switches.
        tape: of the prefix, if it is shared between passes.
        handlers: what to do for each random function.
    """

    def __init__(
        self,
        draws: Draws,
        book: SiteBook,
        tape: PrefixTape | None,
        handlers: dict[Any, Callable[..., Any]],
    ) -> None:
        super().__init__()
        self.draws, self.book, self.tape, self.handlers = draws, book, tape, handlers
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = self.handlers.get(func)
        if handler is not None:
            if "input" in kwargs:
                args, kwargs = (kwargs["input"], *args), {k: v for k, v in kwargs.items() if k != "input"}
            return handler(self, func, *args, **kwargs)
        return self.plain(func, *args, **kwargs)

    def plain(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a call that draws nothing."""
        if self.draws.how == "vmap" and func in _LOW_PRECISION:
            args, kwargs = _autocast(args, kwargs)
        return func(*args, **kwargs) if self.tape is None else self.tape.run(func, args, kwargs)

    def keep(self, site: str, p: float, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw a mask that is true with probability ``1 - p``."""
        self._note(like)
        return self.draws.keep(site, 1 - p, shape, like.device)

    def numbers(self, kind: Any, site: str, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Draw numbers of ``like``'s shape, type and device."""
        self._note(like)
        shape = tuple(like.shape if shape is None else shape)
        return self.draws.numbers(kind, site, shape, like.device).expand(shape)

    def _note(self, like: Tensor) -> None:
        if self.tape is not None:
            self.tape.first_draw()
        self.dtypes.add(like.dtype)
        self.draws.note(like)
