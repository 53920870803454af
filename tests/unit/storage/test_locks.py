"""Who is at work on a folder: one process, or several that share; none is left by a killed one."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ray_distill.errors import InUse, StorageError
from ray_distill.storage import locks
from ray_distill.storage.locks import at_work

#: Holds the lock until its standard input ends; prints a line once it holds it.
HOLDER = """
import sys
from ray_distill.storage.locks import at_work
with at_work(sys.argv[1], "state/lock", sys.argv[2], shared=sys.argv[3] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _holder(folder: Path, command: str, kind: str = "alone") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), command, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_second_process_is_refused_and_the_first_is_named_until_it_is_killed(tmp_path: Path) -> None:
    """Command, process, host and start; a SIGKILL releases the lock, and the next holder is described alone."""
    folder = tmp_path / "out"
    with _holder(folder, "ray-distill run") as process:
        with pytest.raises(InUse) as caught, at_work(str(folder), "state/lock", "ray-distill promote"):
            pass
        message = str(caught.value)
        assert f"`ray-distill run` (process {process.pid} on {os.uname().nodename}, since 20" in message
        assert f"is at work on {folder}: wait until it ends" in message
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (folder / "state" / "lock").exists()
        with at_work(str(folder), "state/lock", "ray-distill promote") as alone:
            assert alone
            (line,) = (folder / "state" / "lock").read_text().splitlines()
            assert json.loads(line)["command"] == "ray-distill promote"
    assert not (folder / "state" / "lock").exists()


def test_sharers_work_together_and_keep_others_out_until_the_last_has_ended(tmp_path: Path) -> None:
    """Both are named; the file goes with the last."""
    with ExitStack() as stack:
        first = stack.enter_context(_holder(tmp_path, "ray-distill label", "shared"))
        with at_work(str(tmp_path), "state/lock", "ray-distill label", shared=True) as alone:
            assert not alone
            assert len((tmp_path / "state" / "lock").read_text().splitlines()) == 2
            refused = subprocess.run(
                [sys.executable, "-c", HOLDER, str(tmp_path), "ray-distill train", "alone"],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert refused.returncode == 1
            assert f"`ray-distill label` (process {first.pid} on" in refused.stderr
            assert f"(process {os.getpid()} on" in refused.stderr
            assert "are at work on" in refused.stderr
        assert (tmp_path / "state" / "lock").exists()
    assert not (tmp_path / "state").exists()


def test_a_shared_lock_is_refused_while_one_works_alone(tmp_path: Path) -> None:
    """The label command does not join a `run`."""
    with (
        _holder(tmp_path, "ray-distill run"),
        pytest.raises(InUse, match="`ray-distill run`"),
        at_work(str(tmp_path), "state/lock", "ray-distill label", shared=True),
    ):
        pass


def test_a_command_that_calls_another_is_not_its_rival_but_a_thread_is(tmp_path: Path) -> None:
    """The quickstart holds the folder in which its campaign runs; a second command in a thread is refused."""
    refusals = []

    def other() -> None:
        with pytest.raises(InUse) as caught, at_work(str(tmp_path), "lock", "other"):
            pass
        refusals.append(str(caught.value))

    with at_work(str(tmp_path), "lock", "outer"):
        with at_work(str(tmp_path), "lock", "inner") as alone:
            assert not alone
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / "lock").exists()
    assert ["`outer`" in refusal for refusal in refusals] == [True]
    assert not (tmp_path / "lock").exists()


def test_folders_made_for_a_lock_go_with_it_unless_something_is_in_them(tmp_path: Path) -> None:
    """A command that is refused for another reason leaves no empty output; one that worked keeps its own."""
    with at_work(str(tmp_path / "a" / "b"), "state/lock", "c"):
        pass
    assert list(tmp_path.iterdir()) == []
    with at_work(str(tmp_path / "a" / "b"), "state/lock", "c"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_the_lock_goes_with_an_error_of_the_block(tmp_path: Path) -> None:
    """A failed command holds no lock either."""
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), at_work(str(tmp_path), "lock", "c"):
            raise ValueError("no")


def test_object_stores_are_not_locked(tmp_path: Path) -> None:
    """Nothing is written there, and the block is not alone."""
    with at_work("memory://bucket/out", "state/lock", "one") as alone:
        assert not alone


def test_a_file_system_without_locks_is_used_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems refuse flock: the command works, unprotected."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with at_work(str(tmp_path), "lock", "c") as alone:
        assert not alone


def test_an_output_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    """A file in its place, for instance, which stops even the superuser."""
    (tmp_path / "file").write_text("x")
    refused = pytest.raises(StorageError, match=r"file.*lock the folder for this command")
    with refused, at_work(str(tmp_path / "file"), "lock", "c"):
        pass
