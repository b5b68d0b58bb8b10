"""Errors that a user can act on: one line each with what, where and the command that fixes it, and an exit code.

Exit codes: 0 ok, 2 usage, 3 data (or a weights file), 4 out of memory, 75 interrupted and resumable (EX_TEMPFAIL).
"""


class BitfastError(Exception):
    """Base of all errors the command line prints as one line; `exit_code` is what the process returns."""

    exit_code = 1


class UsageError(BitfastError, ValueError):
    """A value or combination of values that cannot work: the call has to change."""

    exit_code = 2


class DataError(BitfastError):
    """Something is wrong with the user's images, folders or lists."""

    exit_code = 3


class BadImages(DataError):
    """Images that cannot be read. `found` says which and why: {position in the source or split: reason}."""

    def __init__(self, message, found):
        super().__init__(message)
        self.found = found


class WeightsError(BitfastError):
    """A weights file is missing, unreadable, or does not fit the model."""

    exit_code = 3


class OutOfMemory(BitfastError):
    """Not even one image (or one mixup pair) fits into memory."""

    exit_code = 4


class Interrupted(BitfastError):
    """The run was stopped by a signal after saving; the same command with --resume continues it."""

    exit_code = 75
