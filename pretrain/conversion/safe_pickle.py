"""A pickle of numpy arrays, read without running any code that it names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sharding.base.errors import UserError

_NUMBERS = "biufc"  # numpy's kinds: booleans, integers, floats, complex


class _Refused(Exception):
    """The pickle names something other than arrays and plain containers."""


class _Type:
    """Stands in for `numpy.dtype`: a type of numbers, whatever its byte order."""

    def __init__(self, name: str | bytes, *flags: Any) -> None:
        self.type = np.dtype(_text(name))
        if self.type.kind not in _NUMBERS:
            raise _Refused(f"an array of {self.type}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = _text(state[1])
        if order in ("<", ">"):
            self.type = self.type.newbyteorder("<" if order == "<" else ">")


class _Array:
    """Stands in for `numpy.ndarray`, and for the function that makes an empty one to be filled."""

    values: NDArray[Any]

    def __init__(self, *empty: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, columns_first, data = state
        self.values = _values(data, kind, shape, "F" if columns_first else "C")


class _Buffer(_Array):
    """Stands in for numpy's function that makes an array of a buffer (pickle protocol 5)."""

    def __init__(self, data: Any, kind: _Type, shape: Any, order: str, *axes: Any) -> None:
        if axes and axes[0] is not None:
            raise _Refused("an array of permuted axes")
        self.values = _values(data, kind, shape, order)


class _Scalar(_Array):
    """Stands in for numpy's function that makes one number."""

    def __init__(self, kind: _Type, data: Any) -> None:
        self.values = _values(data, kind, (), "C")


class _Bytes:
    """Stands in for `_codecs.encode`, as which Python 3 writes bytes in old protocols."""

    def __init__(self, text: str, encoding: str) -> None:
        if encoding != "latin1":
            raise _Refused(f"the codec {encoding}")
        self.data = text.encode("latin1")

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refused("a state for bytes")


class _Ordered(dict[Any, Any]):
    """Stands in for `collections.OrderedDict`."""

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refused("a dictionary with attributes")


_NUMPY = {
    "multiarray._reconstruct": _Array,
    "multiarray.scalar": _Scalar,
    "numeric._frombuffer": _Buffer,
}
_ADMITTED: dict[str, type] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "collections.OrderedDict": _Ordered,
    "_codecs.encode": _Bytes,
    **{f"numpy.core.{name}": standin for name, standin in _NUMPY.items()},
    **{f"numpy._core.{name}": standin for name, standin in _NUMPY.items()},  # as of numpy 2
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        standin = _ADMITTED.get(f"{module}.{name}")
        if standin is None:
            raise _Refused(f"{module}.{name}")
        return standin


def read_arrays(path: Path) -> Any:
    """A pickle of dicts, lists, tuples, numbers, texts and numeric numpy arrays, of Python 2 or 3.

    Whatever global the pickle names is looked up in a short list, and even what is on it is made here and not by
    numpy. Raises UserError, naming it, for anything else, and for a file that is damaged or no pickle.
    """
    try:
        with path.open("rb") as file:
            return _plain(_Unpickler(file, encoding="latin1").load())
    except _Refused as refused:
        raise UserError(
            f"the pickle holds more than arrays: {refused}; nothing of it was run",
            str(path),
            "give a file of weights alone (numbers in numpy arrays), from someone you trust",
        ) from None
    except OSError as error:
        raise UserError(f"the file cannot be read: {error}", str(path), "give a readable file") from error
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(
            f"the file is damaged, or no pickle ({type(error).__name__}: {error})", str(path), "fetch it again"
        ) from error


def _plain(tree: Any) -> Any:
    """The tree with arrays in the place of their stand-ins."""
    if isinstance(tree, _Array):
        return tree.values
    if isinstance(tree, _Bytes):
        return tree.data
    if isinstance(tree, _Type):
        raise _Refused("a type without an array")
    if isinstance(tree, dict):
        return {_plain(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_plain(value) for value in tree)
    return tree


def _values(data: Any, kind: _Type, shape: Any, order: str) -> NDArray[Any]:
    raw = _raw(data)
    values = np.frombuffer(raw, kind.type).reshape(shape, order="F" if order == "F" else "C")
    return np.array(values, kind.type.newbyteorder("="), order="C")  # owns its memory, in this machine's byte order


def _raw(data: Any) -> bytes:
    if isinstance(data, _Bytes):
        return data.data
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
