"""Remember what the net computed before its first random number, so that the next sample need not.

The tape sees every torch call of a pass. What came before the first draw is the same in every pass, so a later pass
gets the recorded results instead of computing them. Only tensors that are still in use at the first draw are kept;
for the others a placeholder of the right shape, filled with NaN, stands in. Whether the net agrees to be replayed
(all its calls visible, none of the kept tensors overwritten later) is checked: see `_plan.py`.
"""

from collections.abc import Callable
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_tricks.uncertainty.engine._draws import EngineUnfitError


class _Slot:
    """One tensor of the prefix: a weak reference while recording, then the tensor itself or a stand-in."""

    def __init__(self, tensor: Tensor) -> None:
        self.weak = ref(tensor)
        self.shape, self.dtype, self.device = tuple(tensor.shape), tensor.dtype, tensor.device
        self.version = 0
        self.value: Tensor | None = None
        self.kept = False

    def close(self) -> None:
        """Keep the tensor if the net still holds it, else put a stand-in in its place."""
        tensor = self.weak()
        self.kept = tensor is not None
        if tensor is None:
            fill = float("nan") if self.dtype.is_floating_point or self.dtype.is_complex else 0
            tensor = torch.full((), fill, dtype=self.dtype, device=self.device).expand(self.shape)
        else:
            self.version = tensor._version
        self.value = tensor


class PrefixTape:
    """Results of the calls before the first random draw of a pass.

    ``state`` goes from ``"recording"`` to ``"full"`` at the first draw; a later pass calls :meth:`rewind` first.
    """

    def __init__(self) -> None:
        self.state: Literal["recording", "replaying", "full"] = "recording"
        self._calls: list[tuple[Any, Any]] = []
        self._slots: list[_Slot] = []
        self._by_id: dict[int, _Slot] = {}
        self._at = 0
        self.inputs: Any = None
        self._input_versions: list[int] = []

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Compute a call, or return what it gave in the recorded pass."""
        if self.state == "full":
            return func(*args, **kwargs)
        if self.state == "replaying":
            return self._replay(func)
        result = func(*args, **kwargs)
        self._calls.append((func, tree_map(self._store, result)))
        return result

    def first_draw(self) -> None:
        """Mark the end of what all samples have in common."""
        if self.state == "recording":
            for slot in self._slots:
                slot.close()
            self._input_versions = self._versions()
        elif self.state == "replaying" and self._at != len(self._calls):
            raise EngineUnfitError("the calls before the first dropout differ from pass to pass")
        self.state = "full"

    def rewind(self) -> None:
        """Get ready to replay the prefix.

        Raises:
            EngineUnfitError: if a tensor of the prefix, or an input, was overwritten after the first draw.
        """
        if self._versions() != self._input_versions:
            raise EngineUnfitError("an input is overwritten after the first dropout")
        for slot in self._slots:
            if slot.kept and slot.value is not None and slot.value._version != slot.version:
                raise EngineUnfitError("a tensor from before the first dropout is overwritten after it")
        self.state, self._at = "replaying", 0

    def _versions(self) -> list[int]:
        return [leaf._version for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor)]

    def _store(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        slot = self._by_id.get(id(leaf))
        if slot is None or slot.weak() is not leaf:  # an id is used again once its tensor is gone
            slot = self._by_id[id(leaf)] = _Slot(leaf)
            self._slots.append(slot)
        return slot

    def _replay(self, func: Callable[..., Any]) -> Any:
        if self._at >= len(self._calls) or self._calls[self._at][0] != func:
            raise EngineUnfitError("the calls before the first dropout differ from pass to pass")
        stored = self._calls[self._at][1]
        self._at += 1
        return tree_map(lambda leaf: leaf.value if isinstance(leaf, _Slot) else leaf, stored)
