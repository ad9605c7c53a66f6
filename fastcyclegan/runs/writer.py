"""A thread that writes while the training goes on."""

import threading
from collections.abc import Callable


class Writer:
    """Does one job at a time in a thread of its own; what a job raises is kept until asked for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Begin ``job``. The one before must have been collected by :meth:`finish`."""
        if self._thread is not None:
            raise RuntimeError("the job before has not been collected")
        self._error = None
        # A daemon, so that a process that is told to leave at once does not wait for a disk.
        self._thread = threading.Thread(target=self._run, args=(job,), name="writer", daemon=True)
        self._thread.start()

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error

    @property
    def ready(self) -> bool:
        """Whether a job is done and waits to be collected."""
        return self._thread is not None and not self._thread.is_alive()

    def finish(self) -> BaseException | None:
        """Wait for the job, if there is one; what it raised, or None."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        return error
