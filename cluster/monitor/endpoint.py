"""The metrics endpoint of one process: `/metrics` for Prometheus, `/healthz` for probes."""

import logging
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Annotated, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app
from pydantic import Field

from sharding.base.settings import Settings

log = logging.getLogger("reelscale")


class MonitorSettings(Settings):
    """Where a process serves its metrics."""

    address: Annotated[str, Field(description="address to bind; 0.0.0.0 to let other machines scrape")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="TCP port; 0: any free one")] = 0


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log no request."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def serve(settings: MonitorSettings) -> str | None:
    """Serve this process's metrics in the background; returns the URL of `/metrics`.

    A port that cannot be had is logged and None returned: a run is worth more than its metrics.
    """
    metrics_app = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return cast(Iterable[bytes], metrics_app(environ, start_response))
        ok = path == "/healthz"
        start_response("200 OK" if ok else "404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"ok\n" if ok else b"there are /metrics and /healthz\n"]

    try:
        server = make_server(settings.address, settings.port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        log.warning("no metrics: %s:%d cannot be served (%s)", settings.address, settings.port, error)
        return None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{settings.address}:{server.server_port}/metrics"
