"""What a safetensors file says about itself, checked before a single tensor is allocated.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, the header as JSON, the
data.  The header maps each tensor to ``dtype``, ``shape``, ``data_offsets``, and ``__metadata__`` to strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

MAX_HEADER_BYTES = 2**20
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8
# The storage types that our networks use, with their bytes; anything else is not one of our files.
DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def read_header(content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors' descriptions and the metadata of a safetensors file.

    Args:
        content: the whole file.

    Raises:
        ValueError: what is wrong with the header: it is cut off or too long, is not strict JSON, names a
            dtype, a shape or a range that no file of ours has, or its tensors do not fill the data exactly.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise ValueError(
            f"header of {length} bytes in a file of {len(content)} bytes (at most {MAX_HEADER_BYTES} allowed)"
        )
    header = strict_json(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError(f"header is a {type(header).__name__}, expected an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not an object of strings")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{len(header)} tensors, at most {MAX_TENSORS} allowed")
    ranges = sorted(_byte_range(key, entry) for key, entry in header.items())
    filled = 0
    for begin, end in ranges:
        if begin != filled:
            raise ValueError(f"data offsets leave a gap or overlap at byte {filled}")
        filled = end
    if filled != len(content) - 8 - length:
        raise ValueError(f"tensors take {filled} bytes, the file holds {len(content) - 8 - length}")
    return header, metadata


def _byte_range(key: str, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {key!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"tensor {key!r} has dtype {dtype!r}, expected one of {sorted(DTYPE_BYTES)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {key!r} has shape {shape!r}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {key!r} has data_offsets {offsets!r}")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(
            f"tensor {key!r} of shape {shape} and dtype {dtype} does not take {end - begin} bytes"
        )
    return begin, end


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def strict_json(content: bytes | str) -> Any:
    """JSON without its loopholes: no repeated keys, no NaN or infinity, no nesting that exhausts the stack.

    Raises:
        ValueError: the text is not such JSON.
    """
    try:
        return json.loads(content, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
