"""Users' text, JSON and YAML files: decoded, checked against the type that they must have, or refused with a remedy."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import pydantic
import yaml

from sharding.base.errors import UserError

WRITER = "use the version of Reelscale that wrote it"  # a remedy
SAVE_AS_UTF8 = "save it as UTF-8"
SAVE_OR_SAY_ENCODING = (
    f"{SAVE_AS_UTF8}, or say what it is, e.g. encoding=cp1252 (Windows in the West), latin-1, shift_jis, gb18030 or "
    "utf-16"
)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 2**12  # bytes by which a text is judged before it is read
_WIDE = ("utf-16", "utf-32")

M = TypeVar("M")


class WrongEncoding(UserError):
    """A text is not in the encoding that it is read as."""


def nfc(name: str) -> str:
    """A name in Unicode's composed form: macOS writes é as e and an accent, which others write as one letter."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def file_name(text: str, longest: int) -> str:
    """The letters, digits and points of a text, as a part of a file's name of `longest` bytes at most; may be ""."""
    kept = re.sub(r"[^\w.-]+", "-", text).encode("utf-8", "replace")[:longest]
    return kept.decode("utf-8", "ignore").strip("-.")


def known_encoding(name: str) -> str:
    """`name`, if there is an encoding of texts that is called so. Raises ValueError otherwise."""
    try:
        b"text".decode(name, "replace")
    except (LookupError, ValueError):
        raise ValueError(
            "no encoding is called so; known are e.g. cp1252, latin-1, shift_jis, gb18030, utf-16"
        ) from None
    return name


@contextmanager
def opened_text(
    path: Path,
    where: str,
    what: str,
    encoding: str | None = None,
    newline: str | None = None,
    strict: bool = True,
    hint: str = SAVE_AS_UTF8,
) -> Iterator[io.TextIOBase]:
    """A user's text file, open for reading: unzipped where it is gzip, without a byte-order mark.

    `encoding`: None for UTF-8; a byte-order mark outweighs it. `newline`: as of `open`. Not `strict`: bytes that are
    not of the encoding are replaced, to recognise what a file is. For the messages: `what` the file is, `where` it is,
    and what to do if it is in another encoding (`hint`).
    Raises FileNotFoundError if it is missing, WrongEncoding for bytes that are not of the encoding, UserError for a
    file that cannot be read or is damaged; the last two also while it is read.
    """
    try:
        with path.open("rb") as raw:
            data = _unpacked(raw)
            codec = _codec(data.read(_HEAD), encoding, strict, where, what, hint)
            data.seek(0)
            with io.TextIOWrapper(data, codec, "strict" if strict else "replace", newline) as text:
                yield text
    except UnicodeError as error:
        _refuse(path, where, what, encoding, hint, error)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"the gzip file is damaged: {error}"
        raise UserError(problem, where, "get it again; it may have been cut off on its way") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        problem = f"the {what} cannot be read: {error.strerror or error}"
        raise UserError(problem, where, "give a readable file") from error


def read_text(path: Path, where: str, what: str, hint: str = SAVE_AS_UTF8) -> str:
    """The whole of a user's text file, which is UTF-8; raises as `opened_text` does."""
    with opened_text(path, where, what, hint=hint) as text:
        return text.read()


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    """The file's content, unzipped where it begins as gzip does."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[return-value]


def _codec(head: bytes, encoding: str | None, strict: bool, where: str, what: str, hint: str) -> str:
    """The codec for a text that begins with these bytes. Raises WrongEncoding if it is evidently in another one."""
    marked = next((codec for mark, codec in _MARKS if head.startswith(mark)), None)
    if marked == "utf-8-sig" or (marked is not None and encoding is not None):
        return marked
    if marked is not None:
        raise WrongEncoding(f"the {what} is in {marked.upper()}", where, hint)
    wide = encoding is not None and codecs.lookup(encoding).name.startswith(_WIDE)
    if b"\0" in head and not wide and strict:
        problem = f"the {what} is no UTF-8: it holds NUL bytes, as UTF-16 and files of no text do"
        raise WrongEncoding(problem, where, hint)
    if head and wide and b"\0" not in head:  # every line's end holds one
        raise WrongEncoding(f"the {what} is not in {encoding}", where, "give all texts of a corpus in one encoding")
    return encoding or "utf-8"


def _refuse(path: Path, where: str, what: str, encoding: str | None, hint: str, error: UnicodeError) -> NoReturn:
    """Raises WrongEncoding; for a text that should be UTF-8 it names the first line that is not."""
    if encoding is not None:
        problem = f"the {what} is not in {encoding}: {getattr(error, 'reason', error)}"
        raise WrongEncoding(problem, where, "say what it is with encoding=…, or save it as UTF-8") from error
    line = 1
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as raw:
        data = _unpacked(raw)
        while chunk := data.read(2**20):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as wrong:
                line += wrong.object[: wrong.start].count(b"\n")
                break
            line += chunk.count(b"\n")
    raise WrongEncoding(f"the {what} is not UTF-8", f"{where}, line {line}", hint) from error


def read_json(data: bytes, kind: type[M], what: str, where: str, remedy: str, newest: int = 1) -> M:
    """The JSON in a file's content as an instance of `kind`, any type that pydantic knows.

    `what` the file is, as in "the run's settings.json", is for the messages. A mapping has a "format", 1 unless it says
    otherwise. Raises UserError for content that is no JSON, of another format than `newest`, or not of this kind.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = f"not JSON: {error}" if data.strip() else "it is empty"
        raise UserError(f"{what} is damaged: {why}", where, remedy) from error
    if isinstance(tree, dict):
        require_format(tree.get("format", 1), newest, what, where)
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"{what} is damaged: {place}: {first['msg']}", where, remedy) from error


def require_format(version: object, newest: int, what: str, where: str) -> None:
    """Raises UserError unless a file's format version is `newest`, the one that this version of Reelscale writes."""
    if version != newest:
        raise UserError(f"{what} has format {version!r}; this version reads format {newest}", where, WRITER)


def load_yaml(text: str) -> Any:
    """What the text says, in plain types. Raises yaml.YAMLError for what is no YAML, and for a key that is there twice.

    What a merge key (`<<`) brings may be given anew, as YAML has it.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except (ValueError, OverflowError, RecursionError) as error:  # a date that is none; a number or a nest too large
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's own, which goes through every mapping once more: its constructor lets the last of equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in lines:
                what = f"the key {key!r} is there twice, first on line {lines[key]}"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)
