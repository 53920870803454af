"""Temporary folders go with their process, or with the next command if it was killed; never a live process's."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ray_distill.errors import StorageError
from ray_distill.storage import scratch
from ray_distill.storage.scratch import PREFIX, Scratch, remove_remnants

#: Makes a folder with a file and is killed in the block.
KILLED = """
import os, signal
from ray_distill.storage.scratch import Scratch
with Scratch("model") as scratch:
    (scratch.path / "weights").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, in which every folder is old."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(scratch, "SETTLED_SECONDS", -1.0)
    return tmp_path


def test_a_folder_goes_with_its_block_and_with_its_error(place: Path) -> None:
    """As any temporary folder."""
    with Scratch("model") as one:
        (one.path / "weights").write_text("x")
        assert one.path.name.startswith(f"{PREFIX}model-")
    with pytest.raises(ValueError, match="no"), Scratch("model"):
        raise ValueError("no")
    assert list(place.iterdir()) == []


def test_a_killed_process_leaves_a_folder_that_the_next_command_removes(place: Path) -> None:
    """The folder of a live process stays, and what a user named alike."""
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -9
    others = ["ray-distill-scratch-mine", "ray-distill-campaign", f"{PREFIX}model-abcd1234x"]
    for name in others:
        (place / name).mkdir()
    (place / f"{PREFIX}model-abcd1234").symlink_to(place / "ray-distill-campaign")
    (place / f"{PREFIX}model-abcd1235").write_text("a file")
    assert len(list(place.glob(f"{PREFIX}model-*/weights"))) == 1
    with Scratch("train") as live:
        (live.path / "x").touch()
        assert remove_remnants() == 1
        assert (live.path / "x").exists()
    assert sorted(path.name for path in place.iterdir()) == sorted(
        [*others, f"{PREFIX}model-abcd1234", f"{PREFIX}model-abcd1235"]
    )


@pytest.mark.skipif(os.getuid() != 0, reason="changes the user")
def test_a_remnant_that_cannot_be_entered_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may open it again; a killed process may have copied folders without permissions."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(scratch, "SETTLED_SECONDS", -1.0)
        os.setresuid(65534, 65534, 0)
        try:
            left = Path(folder, f"{PREFIX}model-abcd1234")
            (left / "closed" / "inner").mkdir(parents=True)
            (left / "closed" / "inner" / "file").touch()
            for path in (left / "closed" / "inner", left / "closed", left):
                path.chmod(0)
            assert remove_remnants() == 1
        finally:
            os.setresuid(0, 0, 0)
        assert not any(Path(folder).iterdir())


def test_a_folder_that_may_be_about_to_be_locked_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making and locking it, another process must not remove it."""
    monkeypatch.setattr(scratch, "SETTLED_SECONDS", 60.0)
    left = place / f"{PREFIX}model-abcd1234"
    left.mkdir()
    assert remove_remnants() == 0
    os.utime(left, (time.time() - 61,) * 2)
    assert remove_remnants() == 1


@pytest.mark.parametrize("gone", [True, False], ids=["missing", "a file"])
def test_without_a_folder_for_temporary_files_the_error_names_the_setting(
    gone: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error of the package, not a traceback."""
    monkeypatch.setattr(tempfile, "tempdir", str(place / "none"))
    if not gone:
        (place / "none").write_text("x")
    assert remove_remnants() == 0
    with pytest.raises(StorageError, match=r"temporary files cannot be written: .*set TMPDIR to a folder"):
        Scratch("model")


def test_a_full_disk_names_the_folder_for_temporary_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the block as at its begin."""
    with pytest.raises(StorageError, match=rf"no space left, .*{place}: free some, or set TMPDIR"), Scratch("model"):
        raise OSError(errno.ENOSPC, "No space left on device")

    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(place))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(StorageError, match=rf"no space left in {place}; set TMPDIR"):
        Scratch("model")


def test_removing_twice_is_removing_once(place: Path) -> None:
    """A writer that is closed twice, or whose folder somebody removed, is no error."""
    one = Scratch("model")
    shutil.rmtree(one.path)
    one.remove()
    one.remove()
    assert list(place.iterdir()) == []
