"""Exceptions of birder-ray: a small tree, each with a message that names the thing and the remedy.

Messages quote what others wrote: file names, URLs, texts of libraries. Every one passes through `plain` when it is
made, so that none of them, wherever it ends up, holds a line break, a terminal's escape sequence or a secret.
"""

import re

_LONGEST = 2000

_USER = re.compile(r"(?<=://)(?:[^\s/'\"@]*|[^\s/'\"@:]+:(?!\d+[/?#])[^\s'\"@]*)@")
_QUERY = re.compile(r"(https?://[^\s'\"?]*)\?[^\s'\"]*", re.IGNORECASE)
_SECRET_NAME = (
    r"(?:[\w-]*(?:secret|password|passwd|token|signature|credential|authorization|api_?key|access_?key|account_?key"
    r"|connection_string)[\w-]*|key|sig)"
)
_SECRET = re.compile(
    rf"((?<![\w-]){_SECRET_NAME}=|['\"]{_SECRET_NAME}['\"]\s*[:=]\s*)"
    r"(?!VALUE\b)(\"[^\"]*\"|'[^']*'|[^\s\"'&,;)}\]]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(authorization\s*:\s*(?:\w+\s+)?|bearer\s+)[^\s'\",;]+", re.IGNORECASE)


def plain(text: str) -> str:
    """`text` on one line, without control characters and secrets, and not endless.

    Example:
        >>> plain("GET https://me:pw@host/a.jpg?sig=1\\n\\x1b[31mfailed, secret='abc'")
        'GET https://host/a.jpg \\\\x1b[31mfailed, secret=***'
    """
    if len(text) > 2 * _LONGEST:
        text = text[: 2 * _LONGEST]
    text = printable(" ".join(text.split()))
    text = _QUERY.sub(r"\1", _USER.sub("", text))
    text = _HEADER.sub(r"\1***", _SECRET.sub(r"\1***", text))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def printable(text: str) -> str:
    """`text` with what a terminal would obey, and what no file can hold, written out as escapes."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode() for each in text
    )


LOG_FORMAT = "BIRDER_RAY_LOG"
"""Environment variable: json has messages, of this process and its workers, written as JSON."""


class BirderRayError(Exception):
    """Base class of every error that birder-ray raises on purpose.

    The command line prints the message alone, on one line, and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(plain(message))


class ConfigError(BirderRayError):
    """The user asked for something that cannot be run: a bad option, a missing source, another recipe in DEST."""

    exit_code = 2


class RunFailed(BirderRayError):
    """The run started and could not go on, e.g. too many errors, or the accelerator is too small."""


class Stopped(BirderRayError):
    """The run was asked to stop, and did; what is committed stands."""


class LockHeld(BirderRayError):
    """Another run owns the destination."""


class LimitExceeded(BirderRayError):
    """A comparison shows more than its limits allow."""


class VerifyFailed(BirderRayError):
    """The destination does not hold what its commits say."""


class _Quarantined(BirderRayError):
    """What becomes a row of the errors table, under the short stable name `error_type`."""

    def __init__(self, error_type: str, message: str):
        super().__init__(message)
        self.error_type = error_type

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.error_type, str(self))


class ShardDamaged(_Quarantined):
    """A shard cannot be read further; what was read before it stands.

    Args:
        error_type: short stable name for the errors table, e.g. `DamagedTar`.
        message: what is wrong, and where in the shard.
    """


class SampleError(_Quarantined):
    """One sample cannot be used; it becomes a row of the errors table.

    Args:
        error_type: short stable name for the errors table, e.g. `TruncatedImage`.
        message: what is wrong.
    """
