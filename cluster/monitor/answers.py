"""What a process answers to requests: its metrics to who may read them, its health and readiness to everyone."""

from __future__ import annotations

from aiohttp import web

from cluster.monitor.access import Access
from cluster.monitor.page import LabelledRegistry, Page, Source
from pretrain.resilience.progress import Progress, ReadinessSettings
from sharding.base.printable import visible


class Answers:
    """What a process answers to each request."""

    def __init__(self, source: Source, limits: ReadinessSettings, access: Access, progress: Progress) -> None:
        self._source, self._limits, self._access, self._progress = source, limits, access, progress
        self._page = Page(LabelledRegistry(source, lambda: self._stall() is None))

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """The answer to a request. Probes need show no secret: they learn whether the process gets on, and why not."""
        if request.method not in ("GET", "HEAD"):
            return _text(405, "GET and HEAD alone are answered", {"Allow": "GET, HEAD"})
        if request.path == "/healthz":
            return _text(200, "ok")
        if request.path == "/readyz":
            stall = self._stall()
            return _text(503, stall) if stall else _text(200, f"ok: {self._progress.describe()}")
        if not self._access.allows(request.headers.get("Authorization", "")):
            return _text(401, "show the secret of monitor.access", {"WWW-Authenticate": self._access.challenge})
        if request.path == "/metrics":
            return await self._metrics(request)
        source = self._source
        if request.path == "/":
            who = f"{source.kind} {visible(source.run)}, rank {source.rank} on {visible(source.node)}"
            return _text(200, f"reelscale {who}: /metrics /healthz /readyz")
        return _text(404, "there are /metrics, /healthz and /readyz")

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        try:
            page, content_type = await self._page.get(request.headers.get("Accept", ""))
        except TimeoutError:
            return _text(503, "the figures do not come: a disk or a driver may hang")
        except Exception as error:
            return _text(500, f"the figures cannot be had: {type(error).__name__}")
        return _response(200, page, {"Content-Type": content_type})

    def _stall(self) -> str | None:
        return self._progress.stall(self._limits)


def _text(status: int, line: str, headers: dict[str, str] | None = None) -> web.Response:
    plain = {"Content-Type": "text/plain; charset=utf-8"}
    return _response(status, f"{line}\n".encode("utf-8", "replace"), plain | (headers or {}))


def _response(status: int, body: bytes, headers: dict[str, str]) -> web.Response:
    common = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "reelscale"}
    return web.Response(status=status, body=body, headers=headers | common)
