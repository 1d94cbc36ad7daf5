"""The one kind of error that is the user's to mend, and how every command ends on it: one line, exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps


class InputError(ValueError):
    """Bad input; the message names the file, the record and the fix."""


def first_line(error: Exception) -> str:
    """What a library's error says, in one line of at most 200 characters."""
    return str(error).strip().split("\n")[0][:200]


def command(main: Callable[..., int]) -> Callable[..., int]:
    """A command's `main` that prints an InputError, or a disk that is full or read-only, as one line and returns 2."""

    @wraps(main)
    def guarded(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except InputError as error:
            text = str(error).strip()
            if "Traceback (most recent call last)" in text:  # from a data loader's worker; the last line is ours
                text = text.splitlines()[-1].removeprefix("dpa.errors.InputError: ")
            print("error: " + "\\n".join(text.splitlines()), file=sys.stderr)
        except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  or the interpreter would complain at exit
            return 0
        except OSError as error:
            where = error.filename or "output"
            print(
                f"error: {where}: {error.strerror or error}; free or change it and run again, what is finished is kept",
                file=sys.stderr,
            )
        return 2

    return guarded
