"""What to do when storage fails for a moment: which errors pass, and how long to wait."""

import errno
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import fsspec.asyn

T = TypeVar("T")

ATTEMPTS = 10
DEADLINE_S = 120.0
"""No attempt starts later than this after the first one, nor more than `ATTEMPTS` of them in all."""
LONGEST_WAIT_S = 20.0

_PERMANENT_ERRNO = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS, errno.EDQUOT,
    errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ENOSYS,
}  # fmt: skip
_TRANSIENT_NAMES = {
    "ClientError", "ConnectionClosedError", "EndpointConnectionError", "ReadTimeoutError", "ConnectTimeoutError",
    "IncompleteReadError", "ResponseStreamingError", "HTTPClientError", "ClientPayloadError", "ServerDisconnectedError",
    "ClientConnectorError", "ClientOSError", "ServerTimeoutError", "FSTimeoutError", "HttpError",
    "FlexibleChecksumError", "ResponseParserError",
}  # fmt: skip
_NO_CONNECTION = {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ClientConnectorError"}
# what S3 says with status 400 of a request that did not reach it whole
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
# the answer to a HEAD has no body: 400 is how S3 says that a token has expired, 403 how some other servers do
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "400"}
_PERHAPS_EXPIRED_CODES = {"403", "InvalidAccessKeyId"}  # worth one more try, with credentials read anew

_renewing = threading.Lock()
_renewed_at = float("-inf")


class ShortBody(ConnectionError):
    """Storage gave fewer bytes than there are, and called that complete."""


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: timeouts, resets, 5xx and throttling, but not a missing or forbidden file."""
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return False
    if _s3_code(error) in _TRANSIENT_CODES:
        return True
    status = http_status(error)
    if status is not None and status >= 400:
        return status >= 500 or status in (408, 409, 429)  # S3 says 409 when two conditional writes meet
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if type(error).__name__ in _TRANSIENT_NAMES:
        return True
    return isinstance(error, OSError) and error.errno not in _PERMANENT_ERRNO and type(error) is OSError


def is_outage(error: BaseException) -> bool:
    """Whether `retry` gave up on the store, not on one file: no connection, throttled, or credentials expired."""
    store_wide = http_status(error) in (429, 503) or _s3_code(error) in _EXPIRED_CODES
    return getattr(error, "given_up", False) and (store_wide or type(error).__name__ in _NO_CONNECTION)


def http_status(error: BaseException) -> int | None:
    """The status behind an error of aiohttp or botocore, or of s3fs, which keeps botocore's as the cause."""
    for candidate in (error, error.__cause__):
        status = getattr(candidate, "status", None)
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
    return None


def _s3_code(error: BaseException) -> str | None:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


def retry(call: Callable[[], T], attempts: int = ATTEMPTS, first_delay_s: float = 0.5) -> T:
    """`call()`, again after a transient error, with exponential backoff and jitter, and with credentials read anew
    once they have expired. An error that a `retry` inside of `call` has given up on is not tried again.

    Raises:
        whatever `call` raised last.
    """
    deadline = time.monotonic() + DEADLINE_S
    renewed = False
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            code = _s3_code(error)
            if code in _PERHAPS_EXPIRED_CODES and not renewed and attempt + 1 < attempts:
                _renew_credentials()
                renewed = True
                continue
            if getattr(error, "given_up", False) or not (code in _EXPIRED_CODES or is_transient(error)):
                raise
            wait = min(first_delay_s * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1.5)
            if attempt + 1 == attempts or time.monotonic() + wait > deadline:
                if code in _EXPIRED_CODES:
                    expired = PermissionError("the credentials have expired; renew them")
                    expired.given_up = True  # type: ignore[attr-defined]
                    raise expired from (error.__cause__ or error)
                error.given_up = True  # type: ignore[attr-defined]
                raise
            time.sleep(wait)
            if code in _EXPIRED_CODES:
                _renew_credentials()
    raise AssertionError("attempts must be positive")


def _renew_credentials() -> None:
    """Every S3 filesystem of this process reads its credentials anew; who holds one need not open it again.

    botocore renews by itself what it got from a service (instance roles, web identities); what stands in a file, it
    reads once. What stands in the options does not change.
    """
    global _renewed_at  # noqa: PLW0603
    s3fs = sys.modules.get("s3fs")
    with _renewing:
        if s3fs and time.monotonic() > _renewed_at + 1:  # else another thread just did
            for fs in list(s3fs.S3FileSystem._cache.values()):
                told = fs.anon or fs.key or "aws_access_key_id" in fs.client_kwargs
                if fs._s3 is not None and not told:
                    with suppress(Exception):  # whoever asked tries again, and tells that they have expired
                        fsspec.asyn.sync(fs.loop, _read_anew, fs)
            _renewed_at = time.monotonic()


async def _read_anew(fs: Any) -> None:
    # fs.connect(refresh=True) would do, too, and keep the 15 MB of the old client for good
    credentials = await type(fs.session)(**fs.kwargs).get_credentials()
    if credentials is not None:
        fs._s3._request_signer._credentials = credentials
