"""The lock of a run folder, by which it also knows whether the folder is still its own."""

import errno
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from fastcyclegan.files import printable

# What file systems answer that have no locks: some of clusters.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Lock:
    """The file ``path``, which one process has locked at a time.

    Attributes:
        warning: a line for the user if nothing can be locked there, :meth:`take` works for everyone
            then; else "".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warning = ""
        self._file = -1
        self._checking = threading.Lock()

    def take(self) -> bool:
        """Lock it; False if another process has. Raises OSError when it cannot be opened."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                if isinstance(error, BlockingIOError):
                    return False
                raise
            folder = printable(self.path.parent)
            self.warning = (
                f"warning: {folder} cannot be locked ({error.strerror}): begin no second training "
                "in it, as nothing will refuse that"
            )
        self.release()
        self._file = file
        return True

    def release(self) -> None:
        """Let others have it."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
        self._file = -1

    def require(self) -> None:
        """Raise OSError unless ``path`` is still the file that was locked.

        The folder may have been moved or removed and made again by another run. A lock that was
        merely removed is taken again, if nobody else has meanwhile.
        """
        with self._checking:
            try:
                same = os.path.samestat(os.fstat(self._file), os.lstat(self.path))
            except FileNotFoundError:
                same = self._take_again()
        if not same:
            reason = "another run has taken the place of this one's folder"
            raise OSError(errno.ESTALE, reason, str(self.path.parent))

    def _take_again(self) -> bool:
        try:
            return self.take()
        except FileNotFoundError as error:
            raise OSError(error.errno, error.strerror, str(self.path.parent)) from None
