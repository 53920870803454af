"""Report an error that no part of the package expected, and keep its traceback in a file."""

import tempfile
import traceback
from contextlib import suppress

from ray_distill.redact import redact

#: Characters of the error's own text that are shown.
SHOWN = 300


def last_resort(command: str, error: BaseException) -> str:
    """Return the closing lines for an unexpected error; its traceback is written to a file.

    Args:
        command: name of the command.
        error: what it ended with.
    """
    text = " ".join(str(error).split())
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
