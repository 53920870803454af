"""Bound the memory that a source may take.

A small file may decode to a thousand times its size. All files of a source share one `Budget`, and whatever is read of
them counts before it is decoded or unpacked. Once a file is read, only what is kept of it counts.
"""

import io
from dataclasses import dataclass, field
from typing import IO

from ray_distill.config.snapshot import LARGEST_EXPANSION
from ray_distill.errors import SnapshotError
from ray_distill.storage.memory import memory_limit

#: Bytes of a source that are decoded without regard to the ratio.
FLOOR = 256 << 20
#: Bytes that a row takes beside its values.
ROW_BYTES = 64

_PIECE = 16 << 20


@dataclass(kw_only=True)
class Budget:
    """The bytes that the rows of a source may take in memory, and those that they take already."""

    stored: int
    """Bytes of the source's files, as they are stored."""
    largest: int
    """Bytes of the largest usable cell."""
    ratio: int = LARGEST_EXPANSION
    """Largest accepted ratio of decoded to stored bytes beyond `FLOOR`."""
    memory: int = field(default_factory=lambda: memory_limit())
    """Bytes that this process may take."""
    spent: int = 0

    @property
    def most(self) -> int:
        """Return the bytes that the source may take, whatever memory there is."""
        return max(FLOOR, 16 * self.largest, self.ratio * self.stored)

    def is_dense(self, unpacked: int, packed: int) -> bool:
        """Return whether a part of a file unpacks to more than a whole source of its size may."""
        return unpacked > max(FLOOR, 16 * self.largest) and unpacked > self.ratio * packed

    def keep(self, before: int, size: int) -> None:
        """Count only what is kept of a file that was read: much of it may be columns that are not.

        Args:
            before: what was spent before the file.
            size: bytes of its rows.
        """
        self.spent = min(self.spent, before + size)

    def spend(self, size: int, where: str) -> None:
        """Count bytes that are about to be decoded.

        Raises:
            SnapshotError: with them, the source takes more than the bounds accept, or more memory than there is.
        """
        self.spent += size
        if self.spent > self.most:
            raise SnapshotError(
                f"{where}: the rows of its source take more than {self.most:,} bytes, and its files have "
                f"{self.stored:,}, over {self.ratio} times less: such files are refused before they fill the memory; "
                "inspect them, and raise snapshot.max_expansion if they are right, as texts with a long beginning in "
                "common are"
            )
        if self.spent > self.memory:
            raise SnapshotError(
                f"{where}: the rows of its source take more than {self.spent / 2**30:.1f} GiB, and this process "
                f"may take {self.memory / 2**30:.1f} GiB of memory: take the snapshot on a larger machine, or "
                "of fewer files"
            )


def unpack(stream: IO[bytes], budget: Budget, where: str) -> bytes:
    """Return all bytes of an unpacking stream.

    Raises:
        SnapshotError: as `Budget.spend`.
    """
    found = io.BytesIO()
    while piece := stream.read(_PIECE):
        budget.spend(len(piece), where)
        found.write(piece)
    return found.getvalue()


def spend_rows(data: bytes, budget: Budget, where: str) -> None:
    """Count what the rows of a text file take beside their values.

    Raises:
        SnapshotError: as `Budget.spend`.
    """
    budget.spend(ROW_BYTES * max(data.count(b"\n"), data.count(b"\r")), where)
