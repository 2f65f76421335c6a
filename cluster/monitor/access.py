"""Who may read metrics: the secret that requests are compared with, and the certificates of TLS."""

from __future__ import annotations

import base64
import hmac
import ssl
from dataclasses import dataclass, field

from cluster.monitor.settings import AccessSettings, MonitorSettings, TlsSettings, require_protected
from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.user_paths import expanded

_LONGEST = 1024  # bytes of a secret: a header is cut at twice that


@dataclass(frozen=True)
class Access:
    """What a request must show, and how connections are encrypted. `expected`: the header Authorization that does."""

    expected: bytes | None = field(repr=False)
    tls: ssl.SSLContext | None

    def allows(self, authorization: str) -> bool:
        """Whether a header Authorization shows the secret, in a time that does not depend on how much of it fits."""
        if self.expected is None:
            return True
        scheme, _, shown = authorization.partition(" ")
        canonical = f"{scheme.lower()} {shown.strip()}".encode("utf-8", "surrogateescape")
        return hmac.compare_digest(canonical, self.expected)

    @property
    def challenge(self) -> str:
        """What a request that shows nothing is asked for: the header WWW-Authenticate."""
        kind = "Basic" if self.expected and self.expected.startswith(b"basic ") else "Bearer"
        return f'{kind} realm="reelscale"'


def open_access(settings: MonitorSettings) -> Access:
    """The secret and certificates that settings name.

    Raises UserError where they cannot be read, and as `require_protected` does.
    """
    require_protected(settings)
    expected = _expected(settings.access) if settings.access else None
    return Access(expected, _context(settings.tls) if settings.tls else None)


def _expected(access: AccessSettings) -> bytes:
    secret = _secret(access)
    if access.user is None:
        return b"bearer " + secret
    return b"basic " + base64.b64encode(access.user.encode() + b":" + secret)


def _secret(access: AccessSettings) -> bytes:
    if access.secret_file is not None:
        where = access.secret_file
        try:
            with expanded(where).open("rb") as file:
                secret = file.read(_LONGEST + 3).strip()
        except OSError as error:
            what = f"the secret for readers of metrics cannot be read: {error.strerror}"
            raise UserError(what, where, "put a token into it, or set monitor.access.secret_file") from error
    else:
        where = str(access.secret_variable)
        secret = environment.variable(where).strip().encode("utf-8", "surrogateescape")
    if not secret or len(secret) > _LONGEST or any(byte < 0x21 or byte == 0x7F for byte in secret):
        what = f"the secret for readers of metrics is to be one word of at most {_LONGEST} bytes"
        where = f"the variable {where}" if access.secret_file is None else where
        raise UserError(what, where, "put a token there, e.g. of `openssl rand -hex 32`")
    return secret


def _context(tls: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A password that is asked for at the terminal would hold the command.
        context.load_cert_chain(expanded(tls.certificate), expanded(tls.key), password=lambda: b"")
        if tls.clients:
            context.load_verify_locations(expanded(tls.clients))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        places = ", ".join(path for path in (tls.certificate, tls.key, tls.clients) if path)
        what = f"the certificates for metrics cannot be used: {reason}"
        raise UserError(what, places, "set monitor.tls.certificate, monitor.tls.key and monitor.tls.clients") from error
    return context
