"""Tells which kind of weights file a file is, by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sharding.base.errors import UserError

Kind = Literal["torch", "safetensors", "pickle"]

_ZIP = b"PK\x03\x04"  # torch.save's files begin so now; before 1.6 with a pickle, of any protocol, of this number
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x1f\x8b": "packed with gzip; unpack it",
    b"BZh": "packed with bzip2; unpack it",
    b"\xfd7zXZ": "packed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it",
    b"version https://git-lfs": "Git LFS' pointer to a file; fetch it with git lfs pull",
    b"<": "a page of HTML or XML, as servers send instead of a file",
}
_START = 512  # bytes
_LONGEST = 10**8  # bytes of a safetensors header, which is JSON behind its length


def kind_of(path: Path) -> Kind:
    """The kind of a file: of `torch.save`, safetensors, or a pickle (VMZ's Caffe2 weights); its name does not count.

    Raises UserError for a file that is missing, cannot be read or is of no such kind.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise UserError(f"there is {what}", str(path), "check the path of the weights")
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise UserError(f"the file cannot be read: {error}", str(path), "give a readable file") from error
    if start.startswith(_ZIP) or (start.startswith(b"\x80") and _LEGACY in start[:32]):
        return "torch"
    if int.from_bytes(start[:8], "little") < _LONGEST and start[8:10] == b'{"':
        return "safetensors"
    other_kind = next((kind for mark, kind in _OTHERS.items() if start.lstrip().startswith(mark)), None)
    if start[257:262] == b"ustar":
        other_kind = "a tar of files; unpack it"
    if other_kind or not start:
        raise UserError(
            f"the file is {other_kind or 'empty'}",
            str(path),
            "give what torch.save or safetensors wrote, or VMZ's .pkl",
        )
    return "pickle"
