"""What every command does around its work: exit codes and one clear line per error."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from fastcyclegan.errors import SharedStop, Stop, UserError
from fastcyclegan.files import discard, printable
from fastcyclegan.launch import Launch

DONE, UNEXPECTED, BAD_INPUT, OUT_OF_MEMORY, NOT_FINITE, NOT_SAVED = 0, 1, 2, 3, 4, 5
INTERRUPTED, PIPE_CLOSED = 130, 141


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call ``main`` with the command-line words and turn what it raises into an exit code.

    ``UserError`` prints one line and gives 2, ``Stop`` one line and its code, running out of
    memory 3, Ctrl-C 130, a reader of our output that is gone 141; anything else is a defect of
    ours: the traceback is shown with a request to report it, and the code is 1. One of
    several processes says its number; of what all come to at once, only the first one speaks.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        discard(sys.stdout)  # Python would complain of it again when it flushes at the end
        return PIPE_CLOSED
    except UserError as problem:
        return _fail(str(problem), BAD_INPUT)
    except SharedStop as end:
        return _fail(str(end), end.code, shared=True)
    except Stop as end:
        return _fail(str(end), end.code)
    except PermissionError as problem:
        return _fail(f"{problem.filename}: permission denied", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as problem:
        if _is_out_of_memory(problem):
            return _fail(f"out of memory: {_first_line(problem)}", OUT_OF_MEMORY)
        _tell(traceback.format_exc().rstrip())
        return _fail("this should not happen: please report the lines above", UNEXPECTED)


def leave(code: int) -> NoReturn:
    """End this process with ``code``.

    One of several processes ends at once, without Python's own end: a thread of gloo that still
    holds a tensor would abort it there, and its code would be lost.
    """
    if Launch.of().world == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _fail(message: str, code: int, shared: bool = False) -> int:
    rank, world, *_ = Launch.of()
    if world == 1 or (shared and rank == 0):
        _tell(f"error: {printable(message)}")
    elif not shared:
        _tell(f"error: rank {rank}: {printable(message)}")
    return code


def _tell(text: str) -> None:
    """Print ``text`` on standard error; where that fails the exit code still says what happened."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def _is_out_of_memory(problem: BaseException) -> bool:
    named = type(problem).__name__ == "OutOfMemoryError" or isinstance(problem, MemoryError)
    return named or "DefaultCPUAllocator: can't allocate memory" in str(problem)
