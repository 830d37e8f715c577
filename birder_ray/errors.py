"""Exceptions of birder-ray: a small tree, each with a message that names the thing and the remedy."""


class BirderRayError(Exception):
    """Base class of every error that birder-ray raises on purpose.

    The command line prints the message alone, on one line, and exits with `exit_code`.
    """

    exit_code = 1


class ConfigError(BirderRayError):
    """The user asked for something that cannot be run: a bad option, a missing source, another recipe in DEST."""

    exit_code = 2


class RunFailed(BirderRayError):
    """The run started and could not go on, e.g. too many errors, or the accelerator is too small."""


class LockHeld(BirderRayError):
    """Another run owns the destination."""


class VerifyFailed(BirderRayError):
    """The destination does not hold what its commits say."""


class ShardDamaged(BirderRayError):
    """A shard cannot be read further; what was read before it stands.

    Args:
        error_type: short stable name for the errors table, e.g. `DamagedTar`.
        message: what is wrong, and where in the shard.
    """

    def __init__(self, error_type: str, message: str):
        super().__init__(message)
        self.error_type = error_type


class SampleError(BirderRayError):
    """One sample cannot be used; it becomes a row of the errors table.

    Args:
        error_type: short stable name for the errors table, e.g. `TruncatedImage`.
        message: what is wrong.
    """

    def __init__(self, error_type: str, message: str):
        super().__init__(message)
        self.error_type = error_type
