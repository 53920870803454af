"""A process that dies while it takes a snapshot leaves the whole snapshot, or none that anybody can open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.snapshots import SPLITS, open_snapshot, take_snapshot
from ray_distill.storage.files import list_files
from ray_distill.testing import crashfs


def files(folder: Path) -> dict[str, bytes]:
    return {item.name: Path(item.url).read_bytes() for item in list_files(str(folder))}


@pytest.mark.parametrize(
    ("scheme", "crashing"),
    [
        pytest.param("crash://", crashfs.crashing_remote, id="remote"),
        pytest.param("", crashfs.crashing_disk, id="disk", marks=pytest.mark.crash),
    ],
)
def test_death_at_any_point_of_writing(tmp_path: Path, scheme: str, crashing: Callable[..., Any]) -> None:
    """Before, amid and after each operation: invisible or whole, and the next attempt gives the uncrashed bytes."""
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"row {i}\n" for i in range(120)))
    config = SnapshotConfig(source=str(tmp_path / "in.csv"))

    def take(folder: str) -> SnapshotRef:
        return take_snapshot(config, input_column="text", seed=0, url=f"{scheme}{tmp_path}/{folder}")

    count = crashfs.points(crashing, lambda: take("whole"))
    whole = files(tmp_path / "whole")
    for at, way in crashfs.cut_points(count):
        folder = f"{at}-{way}"
        with pytest.raises(crashfs.Crash), crashing(at, way):
            take(folder)
        found = list((tmp_path / folder).glob("*/snapshot.json"))
        if found:
            try:
                snapshot = open_snapshot(str(found[0].parent))
                assert sum(len(snapshot.read(split)) for split in SPLITS) == 120
            except SnapshotError as error:
                assert "damaged: it is not JSON" in str(error)
        assert open_snapshot(take(folder)).manifest.rows.kept == 120
        assert files(tmp_path / folder) == whole
