"""The tensors of what `torch.save` wrote, where it names classes besides: none of these is looked up or run."""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharding.base.errors import UserError

_PROGRAMS = ("os", "posix", "nt", "sys", "subprocess")
_CALLS = ("builtins.eval", "builtins.exec", "__builtin__.eval", "__builtin__.exec")
_STORAGES: dict[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
_UNTYPED = "torch.storage.UntypedStorage"


class _Standin:
    """No pickle gives an attribute to what is derived from this, be it the class or one of its objects."""

    def __setstate__(*_: Any) -> None:
        pass


class Foreign(_Standin):
    """Stands where an object of a class that is not admitted was: it takes whatever is done to it, and does nothing."""

    named = ""  # the class as the file names it

    def __new__(cls, *_: Any, **__: Any) -> Foreign:
        """One of them, whatever the class's arguments are."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Foreign:
        """Itself, whatever it is called with."""
        return self

    __setitem__ = append = extend = add = _Standin.__setstate__


class _Refused(Exception):
    """The pickle names a program, or no place in the file."""


class _Ordered(_Standin, dict[Any, Any]):
    """Stands in for `collections.OrderedDict`."""


class _Strided(_Standin):
    """Stands in for the functions that make a tensor of a storage."""

    def __new__(cls, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
        dtype = more[2] if len(more) > 2 else None  # `_rebuild_tensor_v3`'s, after requires_grad and the hooks
        return _strided(storage, offset, size, stride, dtype if isinstance(dtype, torch.dtype) else None)


class _Inner(_Standin):
    """Stands in for the functions that wrap a tensor, as `torch.nn.Parameter` is: the tensor."""

    def __new__(cls, tensor: Any = None, *_: Any) -> Any:
        return tensor


class _OfType(_Standin):
    """Stands in for the function that gives a tensor its attributes: the tensor."""

    def __new__(cls, function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        return function(*arguments) if function in _MAKERS else Foreign()


_MAKERS: tuple[type, ...] = (_Strided, _Inner)
# The private functions that torch.save names in its pickles (torch 1.6 to 2.x); none of them is called here.
_ADMITTED: dict[str, Any] = {
    "collections.OrderedDict": _Ordered,
    "torch._utils._rebuild_tensor": _Strided,
    "torch._utils._rebuild_tensor_v2": _Strided,
    "torch._utils._rebuild_tensor_v3": _Strided,
    "torch._utils._rebuild_parameter": _Inner,
    "torch._utils._rebuild_parameter_with_state": _Inner,
    "torch.nn.parameter.Parameter": _Inner,
    "torch._tensor._rebuild_from_type_v2": _OfType,
}


class _Unpickler(pickle.Unpickler):
    """Admits tensors and plain containers; everything else that is named becomes a `Foreign`."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(_record(archive, f"{root}/data.pkl")))
        self.foreign: dict[str, type[Foreign]] = {}
        self._archive, self._root = archive, root
        self._storages: dict[str, tuple[Tensor, torch.dtype | None]] = {}
        order = f"{root}/byteorder"
        self._order = _record(archive, order).decode() if order in archive.namelist() else "little"

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module.partition(".")[0] in _PROGRAMS or full in _CALLS:
            raise _Refused(full)
        if full in _ADMITTED:
            return _ADMITTED[full]
        if full in _STORAGES or full == _UNTYPED:
            return full
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if full not in self.foreign:
            self.foreign[full] = type("Foreign", (Foreign,), {"named": full})
        return self.foreign[full]

    def persistent_load(self, pid: Any) -> Any:
        """A storage: its bytes, and its type if it has one."""
        kind, storage, key, *_ = pid
        if kind != "storage" or not isinstance(storage, str) or not isinstance(key, str):
            raise ValueError("a reference to something that is no storage")
        if key not in self._storages:
            data = bytearray(_record(self._archive, f"{self._root}/data/{key}"))
            dtype = _STORAGES.get(storage)
            if self._order != sys.byteorder and dtype not in (torch.uint8, torch.int8, torch.bool):
                raise ValueError(f"the numbers are of a {self._order}-endian machine")
            self._storages[key] = (torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0).byte(), dtype)
        return self._storages[key]


def _strided(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None) -> Tensor:
    data, own = storage
    values = data.view(dtype or own or torch.uint8)
    if math.prod(size) > len(values):
        raise ValueError(f"a tensor of {tuple(size)} in a storage of {len(values)} numbers")
    strided: Tensor = values.as_strided(tuple(size), tuple(stride), offset)
    return strided


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which torch.save never does")
    return archive.read(entry)


def records(path: Path) -> Sequence[str]:
    """Names of the records in a zip file; none if it is no whole one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def read_archive(path: Path) -> tuple[Any, Mapping[str, type[Foreign]]]:
    """What `torch.save` wrote in its zip format, with a `Foreign` for every object of another class than tensors.

    Also those classes, by the names in the file. Nothing that the file names is imported, looked up or called.

    Raises UserError for a file that is damaged, and for one whose pickle calls a program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            unpickler = _Unpickler(archive, name.removesuffix("/data.pkl"))
            return unpickler.load(), unpickler.foreign
    except _Refused as refused:
        raise UserError(
            f"the file holds more than tensors ({refused}); nothing of it was run",
            str(path),
            "do not use it: a file of weights has no reason to name that",
        ) from None
    except Exception as error:  # a damaged or hostile file can raise anything
        what = f"the file is damaged, or no PyTorch file ({type(error).__name__}: {str(error)[:200]})"
        raise UserError(what, str(path), "fetch it again") from error
