"""A store in an S3 bucket: every answer's length checked, every upload's sum, part by part."""

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
from pathlib import Path
from typing import Any

from sharding.storage.error_mapping import ALREADY_EXISTS_CODES, BrokenResponse, error_code
from sharding.storage.fsspec_store import CHECK_SECONDS, RemoteStore
from sharding.storage.local import landing, whole
from sharding.storage.presigned_reader import GOOD_SECONDS, PartialRange, PresignedReader, replaced

_PART = 32 * 2**20  # of an upload in parts; one of them is in memory at a time
_SINGLE = 2 * _PART  # up to here an upload is one request
_CHUNK = 16 * 2**20  # of a download
_PAGE = 1000  # names of a listing, S3's own limit
# A transfer that hangs is noticed by no time-out of the client's, which only watches for answers or for any byte.
_HANGS_AFTER, _SLOWEST = 60.0, 2**18  # seconds, and bytes a second
_DIRECTORY = "--x-s3"  # how the names of directory buckets end
_EMPTY = "InvalidRange"  # S3's word for a range of an object that has no such bytes


@dataclass(frozen=True)
class _Answer:
    """Bytes [start, …) of an object that is `total` long; `tag` changes with its content."""

    data: bytes
    start: int
    total: int
    tag: str


class S3Store(RemoteStore):
    """A prefix of a bucket. Ranges are read by presigned URLs, where these serve, else by the client."""

    _presigned: tuple[Any, PresignedReader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_presigned"}

    def get(self, path: str) -> bytes:
        return self._call(path, lambda: self._read(path)).data

    def get_range(self, path: str, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        return self._range(path, start, end).data

    def get_tail(self, path: str, size: int) -> tuple[bytes, int]:
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
        return whole(data, max(0, answer.total - size), answer.total, lambda: self._where(path)), answer.total

    def walk(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        bucket, key = self._key(prefix)
        # The root's own "/" belongs to the prefix: a neighbour's name may begin with the root's.
        within = key if prefix else f"{key}/".lstrip("/")
        base = len(self._key("x")[1]) - 1
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": within, "MaxKeys": _PAGE}
        while True:
            page = self._call(prefix, lambda: self._ask("list_objects_v2", **request))
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # a folder's marker
                    yield found["Key"][base:], int(found["Size"])
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def size(self, path: str) -> int:
        return int(self._call(path, lambda: self._head(path))["ContentLength"])

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        mark = uuid.uuid4().hex
        only_new = {"IfNoneMatch": "*", "Metadata": {"put": mark}} if create else {}

        def write() -> None:
            try:
                self._put_object(path, data, **only_new)
            except Exception as error:
                if not create or error_code(error) not in ALREADY_EXISTS_CODES:
                    raise
                # A try that was lost on its way back may have written it, even the first that we know of: aiohttp
                # sends a request anew, untold, when a connection that it had kept turns out to be closed.
                if self._head(path).get("Metadata", {}).get("put") == mark:
                    return
                raise FileExistsError(self._where(path)) from None

        self._call(path, write)

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        length = Path(local_path).stat().st_size
        if length <= _SINGLE:
            data = Path(local_path).read_bytes()
            self._call(path, lambda: self._put_object(path, data))
        else:
            self._put_parts(path, Path(local_path), length)

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        with landing(local_path) as file:
            first = self._call(path, lambda: self._first(path))
            file.write(first.data)
            for start in range(len(first.data), first.total, _CHUNK):
                answer = self._range(path, start, min(start + _CHUNK, first.total))
                if answer.tag != first.tag:
                    raise replaced(self._where(path))
                file.write(answer.data)

    def delete(self, path: str) -> None:
        bucket, key = self._key(path)
        with contextlib.suppress(FileNotFoundError):
            self._call(path, lambda: self._ask("delete_object", Bucket=bucket, Key=key))

    def _check(self) -> None:
        bucket, key = self._key("")
        self._ask("list_objects_v2", limit=CHECK_SECONDS, Bucket=bucket, Prefix=key, MaxKeys=1)

    def _key(self, path: str) -> tuple[str, str]:
        """(bucket, key)."""
        bucket, _, prefix = self.root.partition("/")
        return bucket, "/".join(part for part in (prefix.strip("/"), path) if part)

    def _ask(self, method: str, limit: float | None = None, **arguments: Any) -> dict[str, Any]:
        """S3's answer to one request; `Body`, where it has one, read to its end."""
        fs = self._fs()

        async def ask() -> dict[str, Any]:
            answer = await fs._call_s3(method, **arguments)
            if "Body" in answer:
                body = answer["Body"]
                try:
                    answer["Body"] = await body.read()
                finally:
                    body.close()
            return dict(answer)

        asked = asyncio.run_coroutine_threadsafe(asyncio.wait_for(ask(), limit), fs.loop)
        try:
            return asked.result()
        except BaseException:
            asked.cancel()  # where it was not the answer that raised, but a signal
            raise

    def _head(self, path: str) -> dict[str, Any]:
        bucket, key = self._key(path)
        return self._ask("head_object", Bucket=bucket, Key=key)

    def _first(self, path: str) -> _Answer:
        """An object's first bytes, all of them if they are few."""
        try:
            return self._read(path, f"bytes=0-{_CHUNK - 1}")
        except OSError as error:
            if error_code(error) != _EMPTY:
                raise
            return self._read(path)

    def _range(self, path: str, start: int, end: int) -> _Answer:
        """All of [start, end); what came before a break is kept, and the rest asked for."""
        body = PartialRange(path, start, end)

        def more() -> None:
            quick = self._quick()
            if quick is not None and quick.read(body, _limit(end - start), lambda: self._where(path)):
                return
            self._read_more(body)
            if quick is not None:
                quick.rest()

        self._call(path, more)
        data = whole(b"".join(body.pieces), start, end, lambda: self._where(path))
        return _Answer(data, start, body.total, body.tag)

    def _read_more(self, body: PartialRange) -> None:
        position = body.position
        try:
            answer = self._read(body.path, f"bytes={position}-{body.end - 1}", _limit(body.end - position))
        except OSError as error:
            if error_code(error) == _EMPTY:
                whole(b"".join(body.pieces), body.start, body.end, lambda: self._where(body.path))
            raise
        body.belongs(answer.tag, answer.total, lambda: self._where(body.path))
        body.pieces.append(answer.data[position - answer.start : body.end - answer.start])

    def _quick(self) -> PresignedReader | None:
        """The way of this process by presigned URLs; None where there is none."""
        fs = self._fs()
        if self._presigned is None or self._presigned[0] is not fs:
            self._presigned = (fs, PresignedReader(self._sign, self._bundle, self.counters))
        # A directory bucket's credentials are a session's of a few minutes, which its own client renews.
        return None if self._key("")[0].endswith(_DIRECTORY) else self._presigned[1]

    def _sign(self, path: str) -> str:
        """The URL of a GET of an object, signed by the credentials that every other request is."""
        fs, (bucket, key) = self._fs(), self._key(path)

        async def sign() -> str:
            await fs.set_session()
            client = await fs.get_s3(bucket)
            client.meta.events.register_first("choose-signer.s3", _newest_signature, unique_id="reelscale")
            asked = fs._get_s3_method_kwargs(client.get_object, Bucket=bucket, Key=key)
            return str(await client.generate_presigned_url("get_object", Params=asked, ExpiresIn=GOOD_SECONDS))

        return asyncio.run_coroutine_threadsafe(sign(), fs.loop).result()

    def _bundle(self) -> str | None:
        """The file of certificates that the client trusts, where the user names one."""
        named = self._fs().session.get_config_variable("ca_bundle")
        return named or os.environ.get("REQUESTS_CA_BUNDLE") or None

    def _read(self, path: str, extent: str | None = None, limit: float | None = None) -> _Answer:
        """One GET of an object or of an HTTP range of it; BrokenResponse if less comes than was announced.

        `limit`: seconds that it may take: the client's own time-out begins anew with every byte.
        """
        bucket, key = self._key(path)
        asked: dict[str, Any] = {"Range": extent} if extent else {}
        answer = self._ask("get_object", limit=limit, Bucket=bucket, Key=key, **asked)
        data, length = answer["Body"], answer.get("ContentLength")
        self.counters.add(bytes=len(data))
        if length is not None and len(data) != length:
            raise BrokenResponse(f"{length} bytes were announced, {len(data)} came")
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange") or "")
        if found is None:
            return _Answer(data, 0, len(data), str(answer.get("ETag")))
        first, last, total = map(int, found.groups())
        if len(data) != last - first + 1:
            raise BrokenResponse(f"bytes {first} to {last} were announced, {len(data)} came")
        return _Answer(data, first, total, str(answer.get("ETag")))

    def _put_object(self, path: str, data: bytes, **how: Any) -> None:
        bucket, key = self._key(path)
        request: dict[str, Any] = {"Bucket": bucket, "Key": key, "Body": data, **_sum(bucket, data), **how}
        answer = self._ask("put_object", limit=_limit(len(data)), **request)
        if answer.get("ETag", "").strip('"') != _md5(data).hex():  # an encrypted object's tag is no sum
            self._require_length(path, len(data))

    def _put_parts(self, path: str, local_path: Path, length: int) -> None:
        bucket, key = self._key(path)
        upload = self._call(path, lambda: self._ask("create_multipart_upload", Bucket=bucket, Key=key))["UploadId"]
        place: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": upload}

        def put_part(number: int) -> dict[str, Any]:
            data = _piece(local_path, (number - 1) * _PART)
            request = {"PartNumber": number, "Body": data, **_sum(bucket, data), **place}
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
            # A try that was lost on its way back may have completed it. The tag of an object in parts tells their
            # number, and its length and the parts' own sums are known.
            if not self._head(path).get("ETag", "").strip('"').endswith(f"-{len(parts)}"):
                raise
        self._require_length(path, length)


def _newest_signature(signature_version: Any, **_: Any) -> str | None:
    """SigV4 for presigned URLs: left alone, the client signs them by SigV2, which new servers do not take."""
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None


def _piece(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(_PART)


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _sum(bucket: str, data: bytes) -> dict[str, str]:
    """The sum that the server compares a body with; directory buckets know only the client's own."""
    return {} if bucket.endswith(_DIRECTORY) else {"ContentMD5": base64.b64encode(_md5(data)).decode()}


def _limit(size: int) -> float:
    """Seconds after which the transfer of so many bytes hangs."""
    return _HANGS_AFTER + size / _SLOWEST
