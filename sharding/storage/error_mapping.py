"""Classifies a remote store's errors: worth another try, name already taken, or a UserError."""

from __future__ import annotations

import errno
from typing import Any, NoReturn

from sharding.base.errors import StoreUnreachable, UserError
from sharding.base.redact import redacted

ALREADY_EXISTS_CODES = ("PreconditionFailed", "412", "FileExistsError")
# Codes of S3 and names of botocore's and aiohttp's exceptions after which the same request may succeed.
_PASSING_CODES = (
    "SlowDown", "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch", "InternalError", "ServiceUnavailable", "RequestTimeTooSkewed",
)  # fmt: skip
_PASSING_KINDS = (
    "HTTPClientError", "ConnectionError", "ResponseParserError", "IncompleteReadError", "FlexibleChecksumError",
)  # fmt: skip
_REFUSED_CODES = (
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "TokenRefreshRequired",
)  # fmt: skip
_REFUSED_KINDS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
_OF_THIS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EFBIG)


class BrokenResponse(OSError):
    """A response that is not whole, or not to what was asked: another try may succeed."""


def error_code(error: BaseException) -> str:
    """The S3 error code behind an exception, else its type's name."""
    response = response_of(error)
    return type(error).__name__ if response is None else str(response.get("Error", {}).get("Code", ""))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no response, a broken one, or a server's 5xx, 408, 409 and 429."""
    response = response_of(error)
    if response is not None:
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        return is_retryable_status(status) or error_code(error) in _PASSING_CODES
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError):
        return False
    if isinstance(error, OSError):
        return error.errno not in _OF_THIS_DISK
    kinds = type(error).__mro__
    return any(kind.__name__ in _PASSING_KINDS or kind.__module__.startswith("aiohttp") for kind in kinds)


def is_retryable_status(status: int) -> bool:
    """Whether an HTTP status says that the same request may succeed later."""
    return status >= 500 or status in (408, 409, 429)


def raise_as_user_error(error: Exception, where: str, bucket_level: bool = False) -> NoReturn:
    """Raise what the store's caller should see of `error` (UserError, FileNotFoundError, …), without secrets.

    Not chained to the original, whose text may hold secrets that a traceback would print.
    """
    where, code = redacted(where), error_code(error)
    said = redacted(str(error)) or type(error).__name__
    if isinstance(error, UserError | FileExistsError):
        raise error
    if code == "NoSuchBucket" or (bucket_level and isinstance(error, FileNotFoundError)):
        raise UserError("there is no such bucket", where, "create the bucket, or correct its name") from None
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(where) from None
    if isinstance(error, PermissionError) or code in _REFUSED_CODES or type(error).__name__ in _REFUSED_KINDS:
        remedy = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or the profile) and the bucket's policy"
        raise UserError(f"the store refused the credentials: {said}", where, remedy) from None
    if is_transient(error):
        remedy = "check the address (AWS_ENDPOINT_URL for S3), the network, and that the service is up"
        raise StoreUnreachable(f"the store does not answer: {said}", where, remedy) from None
    if isinstance(error, OSError) or _is_client_error(error) or said.startswith("Invalid endpoint"):  # a ValueError
        remedy = "check the store's address and settings (AWS_ENDPOINT_URL, region and profile for S3)"
        raise UserError(f"the store cannot be used: {said}", where, remedy) from None
    raise error


def response_of(error: BaseException) -> dict[str, Any] | None:
    """The server's parsed answer: `response` of botocore's ClientError, from which s3fs raises its OSErrors."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    return response if isinstance(response, dict) else None


def _is_client_error(error: BaseException) -> bool:
    return any(kind.__module__.startswith(("botocore", "aiobotocore", "aiohttp")) for kind in type(error).__mro__)
