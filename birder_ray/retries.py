"""What to do when storage fails for a moment: which errors pass, and how long to wait."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PERMANENT_ERRNO = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS, errno.EDQUOT,
    errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ENOSYS,
}  # fmt: skip
_TRANSIENT_NAMES = {
    "ClientError", "ConnectionClosedError", "EndpointConnectionError", "ReadTimeoutError", "ConnectTimeoutError",
    "IncompleteReadError", "ResponseStreamingError", "HTTPClientError", "ClientPayloadError", "ServerDisconnectedError",
    "ClientConnectorError", "ClientOSError", "ServerTimeoutError", "FSTimeoutError", "HttpError",
}  # fmt: skip


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: timeouts, resets, 5xx and throttling, but not a missing or forbidden file."""
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return False
    status = http_status(error)
    if status is not None and status >= 400:
        return status >= 500 or status in (408, 409, 429)  # S3 says 409 when two conditional writes meet
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if type(error).__name__ in _TRANSIENT_NAMES:
        return True
    return isinstance(error, OSError) and error.errno not in _PERMANENT_ERRNO and type(error) is OSError


def http_status(error: BaseException) -> int | None:
    """The status behind an error of aiohttp or botocore, or of s3fs, which keeps botocore's as the cause."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        status = getattr(candidate, "status", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
    return None


def retry(call: Callable[[], T], attempts: int = 5, first_delay_s: float = 0.5) -> T:
    """`call()`, again after a transient error, with exponential backoff and jitter.

    Raises:
        whatever `call` raised last.
    """
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            if attempt + 1 == attempts or not is_transient(error):
                raise
            time.sleep(first_delay_s * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("attempts must be positive")
