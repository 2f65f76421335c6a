"""Processes asked for their health and figures over HTTP: many at a time, none waited for longer than a moment."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.monitor.targets import Target
from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.base.user_paths import expanded

ANSWER_SECONDS = 3.0  # that a process has for an answer
_AT_ONCE = 200  # processes that are asked at a time
_LONGEST_LINE, _LONGEST_PAGE = 1024, 8 * 2**20  # bytes that are read of an answer
_READY, _NOT_READY, _REFUSED = 200, 503, (401, 403)


@dataclass(frozen=True)
class Reply:
    """What a process said. `ready`: None where it did not answer; `line`: of /readyz, or why there is none.

    `page`: that of /metrics; None where it could not be had, and `withheld` says why.
    """

    target: Target
    ready: bool | None
    line: str
    page: str | None = None
    withheld: str = ""


@dataclass(frozen=True)
class Reader:
    """What is shown to processes: the header Authorization, and the certificates by which those of TLS are known."""

    authorization: str | None
    tls: ssl.SSLContext


def open_reader(settings: ScrapeSettings) -> Reader:
    """The secret and certificates that settings name. Raises UserError for a file that cannot be used."""
    authorization = None
    if settings.token_file:
        authorization = f"Bearer {_secret('--token-file', settings.token_file)}"
    elif settings.user and settings.password_file:
        password = _secret("--password-file", settings.password_file)
        authorization = aiohttp.encode_basic_auth(settings.user, password, "utf-8")
    where = f"--ca-file {settings.ca_file}"
    try:
        tls = ssl.create_default_context(cafile=settings.ca_file and expanded(settings.ca_file))
        if settings.cert_file and settings.key_file:
            where = f"--cert-file {settings.cert_file} --key-file {settings.key_file}"
            tls.load_cert_chain(expanded(settings.cert_file), expanded(settings.key_file), password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        what = f"the certificates cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UserError(what, where, "name a PEM file of certificates") from error
    return Reader(authorization, tls)


def ask(targets: Sequence[Target], reader: Reader, seconds: float = ANSWER_SECONDS) -> list[Reply]:
    """What each target says, in their order. To be called outside of an event loop."""
    return asyncio.run(_ask_all(targets, reader, seconds)) if targets else []


async def _ask_all(targets: Sequence[Target], reader: Reader, seconds: float) -> list[Reply]:
    headers = {"Authorization": reader.authorization} if reader.authorization else {}
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(session: aiohttp.ClientSession, target: Target) -> Reply:
        async with slots:
            return await _ask(session, target, seconds)

    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=_AT_ONCE, ssl=reader.tls),
        timeout=aiohttp.ClientTimeout(total=seconds),
        trust_env=False,  # a proxy reaches none of them
    ) as session:
        return await asyncio.gather(*(one(session, target) for target in targets))


async def _ask(session: aiohttp.ClientSession, target: Target, seconds: float) -> Reply:
    scheme = "https" if target.scheme == "https" else "http"
    try:
        status, line = await _get(session, f"{scheme}://{target.place}/readyz", _LONGEST_LINE)
    except (TimeoutError, OSError, ValueError, aiohttp.ClientError) as error:
        return Reply(target, None, _in_words(error, seconds, scheme))
    line = line.strip().partition("\n")[0]
    if status not in (_READY, _NOT_READY):
        return Reply(target, None, f"/readyz answers {status}: no process of Reelscale")
    ready = status == _READY
    try:
        status, page = await _get(session, f"{scheme}://{target.place}/metrics", _LONGEST_PAGE)
    except (TimeoutError, OSError, ValueError, aiohttp.ClientError) as error:
        return Reply(target, ready, line, withheld=f"/metrics: {_in_words(error, seconds, scheme)}")
    if status in _REFUSED:
        return Reply(target, ready, line, withheld="its figures want a token or a password")
    if status != _READY:
        return Reply(target, ready, line, withheld=f"/metrics answers {status}")
    return Reply(target, ready, line, page)


async def _get(session: aiohttp.ClientSession, url: str, longest: int) -> tuple[int, str]:
    """The status and the text of an answer. Raises ValueError for a longer one."""
    async with session.get(url, allow_redirects=False) as answer:
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > longest:
                raise ValueError("the answer is too long")
        return answer.status, body.decode("utf-8", "replace")


def _in_words(error: Exception, seconds: float, scheme: str) -> str:
    if isinstance(error, TimeoutError):
        return f"no word within {seconds:g} s: it hangs, or cannot be reached"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not accepted ({visible(error.certificate_error)}): --ca-file"
    if isinstance(error, aiohttp.ClientConnectorError | OSError) and isinstance(error, ConnectionRefusedError):
        return "connection refused: it is gone"
    is_broken = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
    if scheme == "https" and is_broken and not isinstance(error, aiohttp.ClientConnectorError):
        return "it breaks the connection off: does it want a certificate (--cert-file, --key-file)?"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused: it is gone"
    return visible(getattr(cause, "strerror", None) or cause or type(error).__name__)


def _secret(option: str, path: str) -> str:
    try:
        secret = expanded(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        what = f"the secret cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UserError(what, f"{option} {path}", "name the file with what the endpoints want") from error
    if not secret or any(ord(each) < 0x21 or ord(each) == 0x7F for each in secret):
        raise UserError("the secret is to be one word", f"{option} {path}", "put the token or password there, alone")
    return secret
