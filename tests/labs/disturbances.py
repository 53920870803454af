"""Disturb the files of an artifact as a disk, a person or an interrupted copy does, and judge how it is read then."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ray_distill.errors import DistillError

Files = Mapping[str, bytes]

#: A message has a way out if it has one of these words.
WAYS_OUT = ("restore", "delete", "again", "train", "fit ", "run ", "take ", "label ", "without", "remove", "upgrade")


@dataclass(frozen=True)
class Artifact:
    """A folder, how its content is read for use, and the files that it has undisturbed.

    Two reads of undisturbed files are equal. ``names`` are the texts of which an error has one.
    """

    root: Path
    read: Callable[[], Any]
    names: tuple[str, ...] = ()

    @cached_property
    def files(self) -> Files:
        """Names below the folder, and their bytes."""
        return present(self.root)

    @cached_property
    def followed(self) -> set[str]:
        """Return the ends of messages whose advice to restore a file was followed."""
        return set()

    @cached_property
    def content(self) -> Any:
        """What is read undisturbed."""
        return self.read()

    def become(self, wanted: Files) -> None:
        """Make the folder have exactly these files; only what differs is touched."""
        found = present(self.root)
        for name in found.keys() - wanted.keys():
            (self.root / name).unlink()
        for name, data in wanted.items():
            if found.get(name) != data:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_bytes(data)


def present(root: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@st.composite
def disturbed(draw: st.DrawFn, files: Files, other: Files) -> dict[str, bytes | None]:
    """Return what becomes of one file: other bytes, or None where it is deleted.

    Args:
        draw: of Hypothesis.
        files: of the artifact.
        other: of another artifact of the same shape.
    """
    name = draw(st.sampled_from(sorted(files)), label="file")
    data = files[name]
    kind = draw(st.sampled_from(("flip", "respell", "cut", "empty", "delete", "swap", "exchange")), label="kind")
    if kind == "flip" and data:
        at = draw(st.integers(0, len(data) - 1), label="at")
        return {name: data[:at] + bytes([data[at] ^ draw(st.integers(1, 255), label="by")]) + data[at + 1 :]}
    if kind == "respell":
        return {name: respelt(data, draw(st.integers(0, 1 << 30), label="at"))}
    if kind == "cut" and data:
        return {name: data[: draw(st.integers(0, len(data) - 1), label="at")]}
    if kind == "delete":
        return {name: None}
    if kind == "swap" and other:
        suffix = name.rpartition(".")[2]
        same = [name] if name in other else sorted(one for one in other if one.endswith(suffix))
        return {name: other[draw(st.sampled_from(same), label="other")] if same else b""}
    if kind == "exchange":
        suffix = name.rpartition(".")[2]
        second = draw(st.sampled_from(sorted(one for one in files if one.endswith(suffix))), label="second")
        return {name: files[second], second: data}
    return {name: b""}


def respelt(data: bytes, number: int) -> bytes:
    """Return data in which one digit or letter is the next one: what is JSON stays JSON."""
    places = [at for at, value in enumerate(data) if chr(value).isascii() and chr(value).isalnum()]
    if not places:
        return b""
    at = places[number % len(places)]
    value = chr(data[at])
    following = "0" if value == "9" else "a" if value in "zZ" else chr(ord(value) + 1)
    return data[:at] + following.encode() + data[at + 1 :]


def outcome(read: Callable[[], Any]) -> Any:
    """Return what a call returns, or the DistillError that it raises; any other error is raised."""
    try:
        return read()
    except DistillError as error:
        return error


def prove(artifact: Artifact, other: Files, data: st.DataObject) -> None:
    """Require one disturbance to be refused with a clear message, or to change nothing."""
    change = data.draw(disturbed(artifact.files, other))
    expected = artifact.content
    artifact.become({name: item for name, item in {**artifact.files, **change}.items() if item is not None})
    try:
        found = outcome(artifact.read)
    finally:
        artifact.become(artifact.files)
    require_found(artifact, found, expected)
    require_restored(artifact, found)


def prove_whole(artifact: Artifact, other: Files) -> None:
    """Require all files of another artifact at this one's place to be refused."""
    artifact.become(other)
    try:
        found = outcome(artifact.read)
    finally:
        artifact.become(artifact.files)
    assert isinstance(found, DistillError), "another artifact was read under this one's name"
    require_found(artifact, found, None)
    require_restored(artifact, found)


def require_restored(artifact: Artifact, found: Any) -> None:
    """Follow the advice to restore a file, which has been done: what is read is what was read before.

    Each advice, which is the end of a message, is followed once.
    """
    advice = re.sub(r"\S*[/0-9]\S*", "…", str(found).rpartition("; ")[2])
    if isinstance(found, DistillError) and "restore" in advice.lower() and advice not in artifact.followed:
        artifact.followed.add(advice)
        assert artifact.read() == artifact.content, f"not as before, though restored: {found}"


def require_found(artifact: Artifact, found: Any, expected: Any) -> None:
    """Require an error that names the place and a way out, or the undisturbed content."""
    if not isinstance(found, DistillError):
        assert found == expected, "the content changed silently"
        return
    message = str(found)
    assert any(name in message for name in (*artifact.names, str(artifact.root))), f"names no place: {message}"
    assert any(word in message.lower() for word in WAYS_OUT), f"names no way out: {message}"
