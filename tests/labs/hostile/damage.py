"""Damage files, and swap them with others of the same shape."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.labs.hostile.ground import Site

#: How a file is damaged, by name.
Damage = Callable[[Path], None]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def cut(path: Path) -> None:
    """Remove the last third."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def empty(path: Path) -> None:
    """Remove all of its content."""
    path.write_bytes(b"")


def remove(path: Path) -> None:
    """Delete it."""
    path.unlink()


DAMAGES: dict[str, Damage] = {"one bit flipped": flip, "cut": cut, "emptied": empty, "deleted": remove}


def damaged(pattern: str, damage: Damage) -> Callable[[Site], None]:
    """Return a disturbance: damage the first file below the output that matches a glob."""
    return lambda site: damage(site.one(pattern))


def student_swapped(site: Site) -> None:
    """Put the files of a baseline, which has the same shape, in the student's place."""
    student = site.one("students/*/student.json").with_suffix("")
    shutil.rmtree(student)
    shutil.copytree(student.with_name("baseline_hard_labels"), student)
