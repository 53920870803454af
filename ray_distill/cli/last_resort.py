"""Report what no other part expects: errors, and streams that cannot be written."""

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ray_distill.errors import OutputError
from ray_distill.redact import is_secret, redact, secrets_in

#: Characters of the error's own text that are shown.
SHOWN = 300


class ReaderGone(BrokenPipeError):
    """Stdout is a pipe that its reader, such as `head`, has closed."""


class _Stream(io.TextIOBase):
    """A stream of the process, whose failures and secrets are handled where it is written."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self.stream.encoding)

    @property
    def buffer(self) -> Any:
        return self.stream.buffer

    @property
    def closed(self) -> bool:
        return bool(self.stream.closed)

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Leave the process's stream open: others have it too."""


class _Stdout(_Stream):
    """Stdout: a result that cannot be written is an error; a reader that has gone is none."""

    def write(self, text: str) -> int:
        try:
            return int(self.stream.write(text))
        except OSError as error:
            raise _unwritable(error) from error

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            raise _unwritable(error) from error


class _Stderr(_Stream):
    """Stderr: without secrets, and silent where it cannot be written."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self.stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()


def _unwritable(error: OSError) -> Exception:
    """Return the error for stdout, and let nothing be written to it again when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    if isinstance(error, BrokenPipeError):
        return ReaderGone(*error.args)
    return OutputError(
        f"stdout cannot be written ({error.strerror}): what the command did stays; run it again with an output that "
        "can be written, and finished work is skipped"
    )


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Write stdout and stderr through guards, also where the process was started without them."""
    _open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stdout(before[0]), _Stderr(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _open_missing() -> None:
    """Open the null device for closed streams, so that no file of ours gets their numbers."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """Return the secrets among the variables of a process; paths of files are none."""
    named = {value for name, value in environment.items() if is_secret(name) and name != "PWD"}
    return {value for value in named if not value.startswith("/")} | secrets_in(list(environment.values()))


def last_resort(command: str, error: BaseException) -> str:
    """Return the closing lines for an unexpected error; its traceback is written to a file.

    Args:
        command: name of the command.
        error: what it ended with.
    """
    text = " ".join(redact(str(error)).split())
    shown = f"{type(error).__name__}: {text[:SHOWN]}{'…' if len(text) > SHOWN else ''}"
    where = _keep(error)
    kept = f"The traceback is in {where}: please report it" if where else "The traceback could not be written to a file"
    return (
        f"error: `ray-distill {command}` ended with an error that it does not expect: {shown}\n"
        "Whatever a stage has finished or committed stays, and the same command goes on from there; "
        f"`ray-distill doctor` checks this machine. {kept}"
    )


def _keep(error: BaseException) -> str | None:
    """Write the traceback to a new file; return its path, None where there is no place for it."""
    lines = "".join(traceback.format_exception(error))
    with (
        suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="ray-distill-traceback-", suffix=".txt", delete=False
        ) as file,
    ):
        file.write(redact(lines))
        return file.name
    return None
