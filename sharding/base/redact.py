"""Takes secrets out of texts that people read, and refuses them in addresses that are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sharding.base.environment import AWS_KEY_IDS, AWS_SECRETS, variable
from sharding.base.errors import UserError

HIDDEN = "***"
_PARAMETERS = (
    r"x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|credential|sig|"
    r"aws_(?:secret_)?access_key(?:_id)?|aws_session_token|access_key|secret_key|session_token|access_token|"
    r"password|passwd|secret|token"
)
_PATTERNS = (
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#\"'<>]*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?)[^\r\n'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"((?<![\w-])(?:{_PARAMETERS})['\"]?\s*[=:]\s*['\"]?)[^\s&,;'\"<>)]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(<(AWSAccessKeyId|SignatureProvided|StringToSign|CanonicalRequest)>)[^<]*", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"), HIDDEN),
)
_HOST = re.compile(r"([^:]*|\[[0-9A-Fa-f:.]*\])(:\d{0,5})?")
_LONG = 8  # a shorter value may be part of any word


def require_no_password(url: str) -> None:
    """Raise UserError, which does not show it, for a password in a URL: plans and results hold the URL as it is.

    A password may hold "/" and "@", unquoted, so that only the ":" after its user distinguishes it from a host, its
    port and a path.
    """
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.partition("/")[0].rpartition("@")
    slashed = not at and ":" in host and "@" in rest
    if separator and (":" in user or slashed or _HOST.fullmatch(host) is None):
        shown = f"@{rest.rpartition('@')[2]}" if "@" in rest else ""
        remedy = "take it out of the address; give it by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        raise UserError("the address holds a password", redacted(f"{scheme}://{HIDDEN}{shown}"), remedy)


def require_no_passwords(tree: Any) -> None:
    """Raise UserError, which does not show it, for a password in any URL of a JSON tree."""
    if isinstance(tree, str):
        require_no_password(tree)
    elif isinstance(tree, Mapping):
        for value in tree.values():
            require_no_passwords(value)
    elif isinstance(tree, Sequence):
        for value in tree:
            require_no_passwords(value)


def redacted(text: str) -> str:
    """The text without users and passwords of URLs, signatures, and the values of the AWS_* secrets.

    An access key's id, which may be an everyday name, is hidden where it stands alone, not inside a path.
    """
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    for name in AWS_SECRETS:
        value = variable(name)
        if len(value) >= _LONG:
            text = text.replace(value, HIDDEN)
    for name in AWS_SECRETS + AWS_KEY_IDS:
        value = variable(name)
        if value:
            text = re.sub(rf"(?<![\w./:-]){re.escape(value)}(?![\w./:-])", HIDDEN, text)
    return text
