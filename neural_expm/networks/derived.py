"""What a network keeps of its weights in another form: for as long as these stay as they are, and never in a copy."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import nn

from ..errors import InputError


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
    _where: list[tuple[dict[str, Any], str]] | None = None

    def share(self) -> None:
        """Say so of this network and its parts."""
        for module in cast("nn.Module", self).modules():
            if isinstance(module, Derived):
                module.shared = True

    def refresh(self) -> None:
        """Forget what was made of weights that have changed since; asked before each use.

        What is written through ``.data`` or numpy goes unseen; ``load_state_dict`` and changes in place do not.

        Raises:
            InputError: the weights are those of a transform of ``torch.func``.
        """
        if self.shared or torch.compiler.is_compiling():  # a tracer's weights have no addresses
            return
        if self._where is None:
            modules = list(cast("nn.Module", self).modules())
            self._where = [
                (held, name) for m in modules for held in (m._parameters, m._buffers) for name in held
            ]
        tensors = [held[name] for held, name in self._where]
        try:
            now = [t if t is None else (t.data_ptr(), t._version) for t in tensors]
        except RuntimeError as error:
            if not any(t is not None and t.is_inference() for t in tensors):
                raise InputError(
                    f"{type(self).__name__}: its weights are frozen, no transform of torch.func can vary them; train "
                    "an EquivariantTransformer instead"
                ) from error
            now = None  # tensors of inference mode count no changes: nothing is kept of them
        if now is None or now != self._seen:
            for name in self.made:
                self._empty(self.__dict__, name)
            self._seen = now

    @staticmethod
    def _empty(attributes: dict[str, Any], name: str) -> None:
        attributes[name] = {} if isinstance(attributes[name], dict) else None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: tables for native kernels hold pointers, and are made again."""
        state = {
            name: value for name, value in self.__dict__.items() if name not in ("shared", "_seen", "_where")
        }
        for name in self.bound:
            self._empty(state, name)
        return state
