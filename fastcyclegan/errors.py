"""The ends of a command that are no defects of ours: one line and an exit code each."""

from typing import ClassVar


class UserError(Exception):
    """Bad input or a bad option.

    The message is one line that names the file or flag and says what to do. Commands print it as
    ``error: <message>`` and exit with code 2, without a traceback.
    """

    code: ClassVar[int] = 2


class Stop(Exception):
    """An end that is no bad input: an exit code, and one line that says why."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class SharedStop(Stop):
    """An end that all processes of a training come to at once: the first one tells why."""


class RankLost(Stop):
    """Another process of the training has ended, or is silent."""

    def __init__(self, message: str) -> None:
        super().__init__(6, message)
