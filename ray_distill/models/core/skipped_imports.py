"""Hide optional packages from other packages that import all they find installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Hide packages from imports while the block runs.

    Packages that are imported already stay as they are.

    Args:
        packages: names of top-level packages.
    """
    skipped = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(skipped))  # type: ignore[arg-type]  # None: Python's own mark of a failed import
    try:
        yield
    finally:
        for name in skipped:
            del sys.modules[name]
