"""Write references relative to the folder that has them: it may be moved or copied.

A URL of something inside the folder is written as ``within:`` and the path below it; other strings stay as they are.
"""

from collections.abc import Callable
from typing import Any

#: Beginning of a reference to something below the folder.
WITHIN = "within:"


def portable(value: Any, folder: str) -> Any:
    """Return JSON values in which the URLs below ``folder`` are relative to it."""
    base = folder.rstrip("/")
    return _mapped(value, lambda text: f"{WITHIN}{text[len(base) + 1 :]}" if _is_below(text, base) else text)


def located(value: Any, folder: str) -> Any:
    """Return the JSON values that `portable` was given, with URLs below ``folder``."""
    base = folder.rstrip("/")

    def locate(text: str) -> str:
        return (f"{base}/{text.removeprefix(WITHIN)}".rstrip("/") or "/") if text.startswith(WITHIN) else text

    return _mapped(value, locate)


def movable(settings: Any, output: str) -> Any:
    """Return settings whose URLs are relative to the output, and to the folder that it lies in.

    A key of such settings stays the same when a project is moved or copied whole. ``output`` is absolute.
    """
    return portable(portable(settings, output), output.rstrip("/").rpartition("/")[0] or output)


def _is_below(text: str, base: str) -> bool:
    return text == (base or "/") or text.startswith(base + "/")


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
