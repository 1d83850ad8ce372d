"""``python -m neural_expm.training COMMAND …``: every command is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys

from neural_expm.errors import NeuralExpmError

_PACKAGE = "neural_expm.training"

#: command → ("module:function", one line of help); the function takes the remaining arguments.
COMMANDS: dict[str, tuple[str, str]] = {
    "data": (f"{_PACKAGE}.datasets:main", "write and verify data sets with known reference values"),
    "fit": (f"{_PACKAGE}.fit:main", "train an encoder–decoder transformer or an MLP"),
    "ship": (f"{_PACKAGE}.shipping:main", "store a finished run as a checkpoint, measured, in the manifest"),
    "evaluate": (f"{_PACKAGE}.evaluate:main", "measure a checkpoint: quantiles, conformal bounds, gradients"),
    "study": (f"{_PACKAGE}.study:main", "compare encodings, functions and families on equal budgets"),
    "equivariant": (f"{_PACKAGE}.equivariant:main", "fit and certify an equivariant network"),
    "composition": (f"{_PACKAGE}.composition:main", "make the sign and square root compositions"),
    "relu": (f"{_PACKAGE}.relu:main", "build and train ReLU networks"),
    "export": (
        f"{_PACKAGE}.export:main",
        "write a ReLU checkpoint as C99, ONNX or numpy, an equivariant one as ONNX",
    ),
    "publish": (f"{_PACKAGE}.publish:publish", "upload checkpoints to a Hub"),
    "pull": (f"{_PACKAGE}.publish:pull", "fetch checkpoints from a Hub into the local cache"),
    "list": (f"{_PACKAGE}.publish:list_checkpoints", "list the checkpoints of the manifest"),
    "show": (f"{_PACKAGE}.publish:show", "show one checkpoint: domain, bound, card"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m neural_expm.training COMMAND [options]", "", "commands:", *lines])


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"unknown command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module, function = COMMANDS[command][0].split(":")
    try:
        return int(getattr(importlib.import_module(module), function)(rest) or 0)
    except NeuralExpmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
