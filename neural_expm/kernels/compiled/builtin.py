"""A function of a compiled library as a built-in function of Python, for calls that are over before ctypes has begun.

``ctypes`` takes most of a microsecond to convert the arguments and to give up the interpreter's lock and take it again;
a small matrix takes a tenth of that.  A built-in function holds the lock, so it is for small work alone.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

METH_FASTCALL = 0x0080  # of methodobject.h: (self, array of arguments, their number)


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def builtin(library: ctypes.CDLL, name: str) -> Callable[..., int] | None:
    """The function ``name`` of a library that has met Python; None where Python is not CPython.

    The library is a source with ``neural_expm_meet_python`` (``polynomial.h``).  Nothing is checked: the arguments must
    be as many plain integers as the function reads.
    """
    if sys.implementation.name != "cpython":
        return None
    api = ctypes.pythonapi
    as_pointer, from_long = (
        ctypes.cast(function, ctypes.c_void_p) for function in (api.PyLong_AsVoidPtr, api.PyLong_FromLong)
    )
    library.neural_expm_meet_python(as_pointer, from_long)
    definition = _MethodDef(
        name.encode(), ctypes.cast(getattr(library, name), ctypes.c_void_p), METH_FASTCALL
    )
    api.Py_IncRef(ctypes.py_object(definition))  # for ever: Python holds its bare address
    # A prototype of our own: those of ``ctypes.pythonapi`` are everybody's.
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
        ("PyCFunction_NewEx", api)
    )
    return make(ctypes.addressof(definition), None, None)
