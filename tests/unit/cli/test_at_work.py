"""Two commands on one output: the second reports at once who is at work, whatever both are; nothing stays behind."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from ray_distill import cli
from ray_distill.config import load_config
from ray_distill.errors import InUse
from ray_distill.labels.tools.audit import audit
from ray_distill.runtime.core.at_work import LOCK, working
from ray_distill.runtime.core.session import open_session
from ray_distill.storage import locks
from ray_distill.testing.labels import fake_manifest, fake_snapshot, label_all
from tests.unit.cli.test_commands import _write

ALONE = ["run", "snapshot", "write", "train", "evaluate", "promote", "relabel", "sweep", "plan"]


@contextmanager
def _another(folder: str, name: str = LOCK, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock in a thread, which is another command for the calling one."""
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.at_work(folder, name, "ray-distill other", shared=shared):
            held.set()
            end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_TRIES", 2)
    monkeypatch.setattr(locks, "_PAUSE", 0.005)


@pytest.mark.parametrize("shared", [False, True], ids=["beside run", "beside label"])
def test_every_command_reports_who_is_at_work(shared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit status 1, before Ray starts; `label` alone works beside `label`."""
    config = _write(tmp_path)
    with _another(str(tmp_path / "out"), shared=shared):
        for command in ALONE if shared else [*ALONE, "label"]:
            assert cli.main([command, config]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: `ray-distill other` (process ")
            assert f"is at work on {tmp_path / 'out'}: wait until it ends, or use another folder" in line
        with nullcontext() if shared else pytest.raises(InUse), working(load_config(config), shared=True):
            pass


def test_the_quickstart_reports_who_is_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is the campaign's output, and its sources and teacher are made under the same lock."""
    with _another(str(tmp_path / "out")):
        assert cli.main(["quickstart", "--output", str(tmp_path / "out")]) == 1
    assert "`ray-distill other`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_programs_that_call_the_functions_are_kept_apart_too(tmp_path: Path) -> None:
    """The lock is the session's, so that a script and a command do not meet."""
    config = load_config(_write(tmp_path))
    with _another(str(tmp_path / "out")), pytest.raises(InUse), open_session(config):
        pass


def test_attempts_are_deleted_only_while_nobody_labels(tmp_path: Path) -> None:
    """`audit` alone reads beside a labeller; with --clean it reports who is at work."""
    store, snapshot = str(tmp_path / "store"), fake_snapshot(range(12))
    label_all(store, fake_manifest(estimator="topk"), snapshot)
    with _another(store, "lock", shared=True):
        assert audit(store, snapshot).ok
        with pytest.raises(InUse, match="`ray-distill other`"):
            audit(store, snapshot, clean=True)
    assert audit(store, snapshot, clean=True).ok


def test_a_lone_command_removes_what_killed_ones_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scratch folders of `plan`, progress, unfinished files; never what a user named alike, nor another's store."""
    config, out, digits = load_config(_write(tmp_path)), tmp_path / "out", "0123456789abcdef" * 2
    litter = [f"plan-{digits}/labels/x", "state/progress/1.json", f"state/.label.json.{digits}.part"]
    kept = ["plan-b/x", "state/label.json", "state/.part", f"labels/.store.json.{digits}.part"]
    for name in (*litter, *kept):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")
    with _another(str(out), shared=True), working(config, shared=True):
        assert (out / litter[0]).exists()
    with working(config):
        left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == sorted([*kept, LOCK])
    assert f"removed 3 temporary files and folders that killed commands left in {out}" in capsys.readouterr().err
    with working(config):
        assert "removed" not in capsys.readouterr().err
