"""What a tracer is told about a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_in_traces(function: F) -> F:
    """A tracer runs the function and takes its result as a constant.

    What ``torch.compiler.assume_constant_result`` sets, without its import of the whole compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def untraceable(reason: str) -> Callable[[F], F]:
    """A tracer stops before the function and runs it as it is; where it may not, it quotes the reason.

    What ``torch.compiler.disable`` sets, likewise.
    """

    def marked(function: F) -> F:
        vars(function).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
        return function

    return marked
