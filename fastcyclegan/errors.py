"""The one error that a person's input can cause."""


class UserError(Exception):
    """Bad input or a bad option.

    The message is one line that names the file or flag and says what to do. Commands print it as
    ``error: <message>`` and exit with code 2, without a traceback.
    """
