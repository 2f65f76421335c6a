"""Where a process serves its metrics, to whom, and when it counts as not getting on."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from pretrain.resilience.progress import ReadinessSettings
from sharding.base.errors import UserError
from sharding.base.settings import Settings, unit

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class TlsSettings(Settings):
    """The certificate by which metrics are served encrypted, and whose certificates their readers need."""

    certificate: Annotated[str, Field(min_length=1, description="PEM file of the certificate and those above it")]
    key: Annotated[str, Field(min_length=1, description="PEM file of its private key, without a password")]
    clients: Annotated[
        str | None,
        Field(description="PEM file of authorities; readers need a certificate of theirs, probes of /healthz, too"),
    ] = None


class AccessSettings(Settings):
    """The secret that readers of metrics show: a bearer token, or with `user` a password. Settings name its place."""

    user: Annotated[
        str | None,
        Field(pattern=r"^[^:\x00-\x1f\x7f]+$", description="user of basic auth; unless named: a bearer token"),
    ] = None
    secret_file: Annotated[
        str | None, Field(description="file with the token or password, on every machine that has a rank")
    ] = None
    secret_variable: Annotated[
        str | None, Field(pattern=_VARIABLE, description="environment variable with it, of every rank")
    ] = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.secret_file is None) == (self.secret_variable is None):
            raise ValueError("name either secret_file or secret_variable")
        return self


class MonitorSettings(Settings):
    """Where a process serves its metrics and its health, and to whom."""

    address: Annotated[
        str, Field(min_length=1, description="address to bind; 0.0.0.0 or ::, to be reached from other machines")
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="TCP port of a machine's first rank, the next rank's is the next; 0: any free one",
        ),
    ] = 9480
    ports: Annotated[
        int,
        Field(
            json_schema_extra=unit("ports"), ge=1, le=65536, description="of which a free one is taken, from `port` on"
        ),
    ] = 64
    tls: Annotated[TlsSettings | None, Field(description="certificates; unless named: not encrypted")] = None
    access: Annotated[AccessSettings | None, Field(description="what readers show; unless named: nothing")] = None
    insecure: Annotated[
        bool,
        Field(description="serve other machines without `access` or `tls.clients`: whoever reaches the port reads"),
    ] = False
    targets: Annotated[
        str | None,
        Field(
            description="folder for files by which Prometheus finds this process; unless named: targets in the cache"
        ),
    ] = None
    ready: Annotated[ReadinessSettings, Field(description="when /readyz says that a process does not get on")] = (
        ReadinessSettings()
    )

    @field_validator("address")
    @classmethod
    def _is_a_host(cls, address: str) -> str:
        try:
            address.encode("idna")
        except UnicodeError:
            raise ValueError("it is no address or name of a host") from None
        return address

    @model_validator(mode="after")
    def _ports_exist(self) -> Self:
        if self.port and self.port + self.ports > 65536:
            raise ValueError(
                f"port {self.port} and the {self.ports - 1} after it go beyond 65535: set a lower port, or ports"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.address.partition("%")[0]).is_loopback
        except ValueError:
            return self.address == "localhost"

    @property
    def serves_all(self) -> bool:
        """Whether the address is every one of the machine's."""
        try:
            return ipaddress.ip_address(self.address).is_unspecified
        except ValueError:
            return False


def require_protected(settings: MonitorSettings) -> None:
    """Raise UserError for metrics that whoever reaches this machine could read, unless `insecure` says so.

    A reader has to show who it is: by `access`, or by a certificate (`tls.clients`). TLS alone hides what is sent from
    those on the way, and gives it to all who ask.
    """
    if settings.is_local or settings.access or (settings.tls and settings.tls.clients) or settings.insecure:
        return
    alone = " (TLS alone encrypts, and lets everyone read)" if settings.tls else ""
    raise UserError(
        f"metrics at {settings.address} would be served to whoever reaches it{alone}",
        "monitor.address",
        "set monitor.access.secret_variable=NAME or monitor.access.secret_file=FILE (a token that readers show), "
        "monitor.tls.clients, or monitor.insecure=true",
    )
