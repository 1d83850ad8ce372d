"""What a network keeps of its weights in another form: for as long as these stay as they are, and never in a copy."""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar, cast

import torch
from torch import nn


class Derived:
    """Mixin for ``nn.Module``.

    Attributes:
        made: names of the attributes that hold what was made of the weights: None or a dict.
        bound: those that hold addresses, and no copy gets.
        shared: one network serves all calls of the process, and nobody else has it to change; not so in a copy.
    """

    made: ClassVar[tuple[str, ...]] = ()
    bound: ClassVar[tuple[str, ...]] = ()
    shared: bool = False
    _seen: Any = None

    def share(self) -> None:
        """Say so of this network and its parts."""
        for module in cast("nn.Module", self).modules():
            if isinstance(module, Derived):
                module.shared = True

    def refresh(self) -> None:
        """Forget what was made of weights that have changed since; asked before each use."""
        if self.shared or torch.compiler.is_compiling():  # a tracer's weights have no addresses
            return
        module = cast("nn.Module", self)
        tensors = chain(module.parameters(), module.buffers())
        # The version counts changes in place; tensors of inference mode have none.
        now = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if now != self._seen:
            for name in self.made:
                self._empty(self.__dict__, name)
            self._seen = now

    @staticmethod
    def _empty(attributes: dict[str, Any], name: str) -> None:
        attributes[name] = {} if isinstance(attributes[name], dict) else None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: tables for native kernels hold pointers, and are made again."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("shared", "_seen")}
        for name in self.bound:
            self._empty(state, name)
        return state
