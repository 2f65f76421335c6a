"""A store in an S3 bucket: the length of every download and the checksum of every upload are verified."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from sharding.base import environment
from sharding.storage.error_mapping import (
    ALREADY_EXISTS_CODES,
    BrokenResponse,
    error_code,
    raise_as_user_error,
    response_of,
)
from sharding.storage.fsspec_store import CHECK_SECONDS, RemoteStore
from sharding.storage.local import file_to_download, whole
from sharding.storage.presigned_reader import GOOD_SECONDS, PartialRange, PresignedReader, object_replaced

_PART = 32 * 2**20  # of an upload in parts; one of them is in memory at a time
_SINGLE = 2 * _PART  # up to here an upload is one request
_CHUNK = 16 * 2**20  # of a download
_PAGE = 1000  # names of a listing, S3's own limit
# aiobotocore's time-outs begin anew with every byte, so that none of them notices a transfer that hardly moves.
_HANGS_AFTER, _SLOWEST = 60.0, 2**18  # seconds, and bytes a second
_DIRECTORY = "--x-s3"  # the ending of the names of directory buckets (S3 Express One Zone)
_ANSWER_SECONDS = 20.0  # in which a store that is opened is to answer, also where both machines have much to do
_EMPTY = "InvalidRange"  # S3's word for a range of an object that has no such bytes


@dataclass(frozen=True)
class _Answer:
    """Bytes [start, …) of an object of `object_size` bytes; `etag` changes with its content."""

    data: bytes
    start: int
    object_size: int
    etag: str


class S3Store(RemoteStore):
    """A prefix of a bucket. Ranges are read by presigned URLs where the server takes them, else by the S3 client."""

    _presigned: tuple[Any, PresignedReader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_presigned"}

    def get(self, path: str) -> bytes:
        """The whole object."""
        return self._call(path, lambda: self._read(path)).data

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object; DamagedStore if it is shorter than `end`."""
        if end <= start:
            return b""
        return self._range(path, start, end).data

    def get_tail(self, path: str, size: int) -> tuple[bytes, int]:
        """The last `size` bytes of the object and its whole length, by one request."""
        if size <= 0:
            return b"", self.size(path)

        def read() -> _Answer:
            try:
                return self._read(path, f"bytes=-{size}")
            except OSError as error:
                if error_code(error) != _EMPTY:
                    raise
                return self._read(path)

        answer = self._call(path, read)
        data = answer.data[-size:]  # a server may give the whole object all the same
        total = answer.object_size
        return whole(data, max(0, total - size), total, lambda: self._where(path)), total

    def walk(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(relative path, bytes) of all objects whose path begins with `prefix`, in no order."""
        bucket, key = self._key(prefix)
        # The root's own "/" belongs to the prefix: a neighbour's name may begin with the root's.
        within = key if prefix else f"{key}/".lstrip("/")
        base = len(self._key("x")[1]) - 1
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": within, "MaxKeys": _PAGE}
        while True:
            page = self._call(prefix, lambda: self._ask("list_objects_v2", **request))
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # a folder's marker
                    yield entry["Key"][base:], int(entry["Size"])
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def size(self, path: str) -> int:
        """Bytes of the object."""
        return int(self._call(path, lambda: self._head(path))["ContentLength"])

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        """Write the object whole or not at all; with `create`, FileExistsError if the path is taken."""
        mark = uuid.uuid4().hex
        only_new = {"IfNoneMatch": "*", "Metadata": {"put": mark}} if create else {}

        def write() -> None:
            try:
                self._put_object(path, data, **only_new)
            except Exception as error:
                if not create or error_code(error) not in ALREADY_EXISTS_CODES:
                    raise
                # An earlier try whose response was lost may have written it, even before our first one: aiohttp
                # repeats a request silently when a connection that it had kept open turns out to be closed.
                if self._head(path).get("Metadata", {}).get("put") == mark:
                    return
                raise FileExistsError(self._where(path)) from None

        self._call(path, write)

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Upload a local file whole or not at all."""
        length = Path(local_path).stat().st_size
        if length <= _SINGLE:
            data = Path(local_path).read_bytes()
            self._call(path, lambda: self._put_object(path, data))
        else:
            self._put_parts(path, Path(local_path), length)

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Download the object to a local file, whole or not at all."""
        with file_to_download(local_path) as file:
            first = self._call(path, lambda: self._first(path))
            file.write(first.data)
            for start in range(len(first.data), first.object_size, _CHUNK):
                answer = self._range(path, start, min(start + _CHUNK, first.object_size))
                if answer.etag != first.etag:
                    raise object_replaced(self._where(path))
                file.write(answer.data)

    def delete(self, path: str) -> None:
        """Remove the object, if there is one."""
        bucket, key = self._key(path)
        with contextlib.suppress(FileNotFoundError):
            self._call(path, lambda: self._ask("delete_object", Bucket=bucket, Key=key))

    def server_time(self) -> float | None:
        """The server's clock, by the date of its answer to one request, also to one that it refuses."""
        try:
            answer = self._first_name()
        except Exception as error:
            answer = response_of(error) or raise_as_user_error(error, self.url, bucket_level=True)
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        return parsedate_to_datetime(date).timestamp() if date else None

    def _make_client(self) -> None:
        fs = self._fs()
        asyncio.run_coroutine_threadsafe(fs.set_session(), fs.loop).result()

    def _check(self) -> None:
        self._first_name()

    def _first_name(self) -> dict[str, Any]:
        bucket, key = self._key("")
        return self._ask("list_objects_v2", limit=_ANSWER_SECONDS, Bucket=bucket, Prefix=key, MaxKeys=1)

    def _key(self, path: str) -> tuple[str, str]:
        """The bucket and the key of an object."""
        bucket, _, prefix = self.root.partition("/")
        return bucket, "/".join(part for part in (prefix.strip("/"), path) if part)

    def _ask(self, method: str, limit: float | None = None, **arguments: Any) -> dict[str, Any]:
        """S3's answer to one request, its `Body` read whole; given up after `limit` seconds."""
        fs = self._fs()

        async def ask() -> dict[str, Any]:
            # s3fs' private way to one request of the client, with its sessions and its translation of errors, but
            # without its caches and its own reading of bodies. So in s3fs 2025.9 to 2026.9.
            async with asyncio.timeout(limit):
                answer = await fs._call_s3(method, **arguments)
                if "Body" in answer:
                    with contextlib.closing(answer["Body"]) as body:
                        answer["Body"] = await body.read()
            return dict(answer)

        asked = asyncio.run_coroutine_threadsafe(ask(), fs.loop)
        try:
            return asked.result()
        except BaseException:
            asked.cancel()  # where it was not the answer that raised, but a signal
            raise

    def _head(self, path: str) -> dict[str, Any]:
        bucket, key = self._key(path)
        return self._ask("head_object", Bucket=bucket, Key=key)

    def _first(self, path: str) -> _Answer:
        """The first _CHUNK bytes of an object, or all of them."""
        try:
            return self._read(path, f"bytes=0-{_CHUNK - 1}")
        except OSError as error:
            if error_code(error) != _EMPTY:
                raise
            return self._read(path)

    def _range(self, path: str, start: int, end: int) -> _Answer:
        """Bytes [start, end) of an object; a try after a broken one asks for the missing bytes only."""
        body = PartialRange(path, start, end)

        def more() -> None:
            presigned = self._presigned_reader()
            if presigned is not None and presigned.read(body, _limit(end - start), lambda: self._where(path)):
                return
            self._read_more(body)
            if presigned is not None:
                presigned.pause()

        self._call(path, more)
        data = whole(b"".join(body.pieces), start, end, lambda: self._where(path))
        return _Answer(data, start, body.object_size, body.etag)

    def _read_more(self, body: PartialRange) -> None:
        position = body.position
        try:
            answer = self._read(body.path, f"bytes={position}-{body.end - 1}", _limit(body.end - position))
        except OSError as error:
            if error_code(error) == _EMPTY:
                whole(b"".join(body.pieces), body.start, body.end, lambda: self._where(body.path))
            raise
        body.check_version(answer.etag, answer.object_size, lambda: self._where(body.path))
        body.pieces.append(answer.data[position - answer.start : body.end - answer.start])

    def _presigned_reader(self) -> PresignedReader | None:
        """This process's reader by presigned URLs; None for a directory bucket."""
        fs = self._fs()
        if self._presigned is None or self._presigned[0] is not fs:
            self._presigned = (fs, PresignedReader(self._sign, self._ca_bundle, self.counters))
        # A directory bucket's credentials are a session's of a few minutes, which its own client renews.
        return None if self._key("")[0].endswith(_DIRECTORY) else self._presigned[1]

    def _sign(self, path: str) -> str:
        """The URL of a GET of an object, signed with the same credentials as every other request."""
        fs, (bucket, key) = self._fs(), self._key(path)

        async def sign() -> str:
            await fs.set_session()
            client = await fs.get_s3(bucket)
            client.meta.events.register_first("choose-signer.s3", _newest_signature, unique_id="reelscale")
            # Private to s3fs: adds what it adds to its own requests (e.g. RequestPayer), so that a presigned GET is
            # allowed what they are. So in s3fs 2025.9 to 2026.9.
            asked = fs._get_s3_method_kwargs(client.get_object, Bucket=bucket, Key=key)
            return str(await client.generate_presigned_url("get_object", Params=asked, ExpiresIn=GOOD_SECONDS))

        return asyncio.run_coroutine_threadsafe(sign(), fs.loop).result()

    def _ca_bundle(self) -> str | None:
        """The file of certificate authorities that the user names for S3; None for the system's own."""
        named = self._fs().session.get_config_variable("ca_bundle")
        return named or environment.ca_bundle()

    def _read(self, path: str, extent: str | None = None, limit: float | None = None) -> _Answer:
        """The answer to one GET of an object, or of an HTTP range of it, within `limit` seconds.

        Raises BrokenResponse if less comes than was announced.
        """
        bucket, key = self._key(path)
        asked: dict[str, Any] = {"Range": extent} if extent else {}
        answer = self._ask("get_object", limit=limit, Bucket=bucket, Key=key, **asked)
        data, length = answer["Body"], answer.get("ContentLength")
        self.counters.add(bytes=len(data))
        if length is not None and len(data) != length:
            raise BrokenResponse(f"{length} bytes were announced, {len(data)} came")
        extent_sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange") or "")
        if extent_sent is None:
            return _Answer(data, 0, len(data), str(answer.get("ETag")))
        first, last, total = map(int, extent_sent.groups())
        if len(data) != last - first + 1:
            raise BrokenResponse(f"bytes {first} to {last} were announced, {len(data)} came")
        return _Answer(data, first, total, str(answer.get("ETag")))

    def _put_object(self, path: str, data: bytes, **how: Any) -> None:
        bucket, key = self._key(path)
        request: dict[str, Any] = {"Bucket": bucket, "Key": key, "Body": data, **_checksum(bucket, data), **how}
        answer = self._ask("put_object", limit=_limit(len(data)), **request)
        if answer.get("ETag", "").strip('"') != _md5(data).hex():  # an encrypted object's tag is no sum
            self._require_length(path, len(data))

    def _put_parts(self, path: str, local_path: Path, length: int) -> None:
        bucket, key = self._key(path)
        upload = self._call(path, lambda: self._ask("create_multipart_upload", Bucket=bucket, Key=key))["UploadId"]
        place: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": upload}

        def put_part(number: int) -> dict[str, Any]:
            data = _piece(local_path, (number - 1) * _PART)
            request = {"PartNumber": number, "Body": data, **_checksum(bucket, data), **place}
            answer = self._call(path, lambda: self._ask("upload_part", limit=_limit(len(data)), **request))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            parts = [put_part(number) for number in range(1, -(-length // _PART) + 1)]
            self._call(path, lambda: self._complete(path, place, parts, length))
        except BaseException:
            with contextlib.suppress(Exception):
                self._ask("abort_multipart_upload", limit=CHECK_SECONDS, **place)
            raise

    def _complete(self, path: str, place: dict[str, Any], parts: list[dict[str, Any]], length: int) -> None:
        try:
            self._ask("complete_multipart_upload", MultipartUpload={"Parts": parts}, **place)
        except Exception as error:
            if error_code(error) != "NoSuchUpload":
                raise
            # An earlier try whose response was lost may have completed it. The ETag of an object in parts ends with
            # their number; its length is checked below, and each part was uploaded with its checksum.
            if not self._head(path).get("ETag", "").strip('"').endswith(f"-{len(parts)}"):
                raise
        self._require_length(path, length)


def _newest_signature(signature_version: Any, **_: Any) -> str | None:
    """Signature version 4 for presigned URLs, as a handler of botocore's event "choose-signer".

    A workaround: left alone, botocore 1 presigns S3 URLs by version 2, which newer servers and regions refuse.
    """
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None


def _piece(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(_PART)


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _checksum(bucket: str, data: bytes) -> dict[str, str]:
    """The header with a body's checksum, which the server verifies; none for directory buckets, which refuse it."""
    return {} if bucket.endswith(_DIRECTORY) else {"ContentMD5": base64.b64encode(_md5(data)).decode()}


def _limit(size: int) -> float:
    """Seconds after which a transfer of so many bytes counts as hanging."""
    return _HANGS_AFTER + size / _SLOWEST
