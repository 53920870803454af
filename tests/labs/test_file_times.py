"""The limit on the seconds of one test file: what is over it fails the session, except with a reason."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.labs.file_times import ALWAYS, SLOW_FILES, left_out, too_slow

ROOT = Path(__file__).parents[2]


def test_files_over_the_limit_are_named_slowest_first() -> None:
    """A file with a reason, and one at the limit, are not."""
    seconds = {"a.py": 121.0, "b.py": 500.0, "c.py": 300.0, "d.py": 120.0}
    assert [line.split()[0] for line in too_slow(seconds, 120, {"c.py": "it starts a cluster"})] == ["b.py", "a.py"]


def test_a_machine_at_half_the_pace_moves_the_limit() -> None:
    """At 4,000 s for all files a file may take 200 s; at 2,000 s the limit in seconds holds."""
    others = {f"{index}.py": 100.0 for index in range(38)}
    assert too_slow({"a.py": 190.0, **others}, 120, {}) == []
    assert len(too_slow({"a.py": 220.0, **others}, 120, {})) == 1
    assert len(too_slow({"a.py": 130.0, **dict(list(others.items())[:15])}, 120, {})) == 1


def test_three_commits_take_every_slow_file_once_and_some_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is left out by all, none outside the list by any, and without a commit all are taken."""
    monkeypatch.delenv("DISTILL_COMMIT", raising=False)
    assert left_out() == frozenset()
    taken = [name for commit in ("30", "31", "32") for name in SLOW_FILES if name not in left_out(commit)]
    assert sorted(taken) == sorted([*SLOW_FILES, *ALWAYS, *ALWAYS])
    assert ALWAYS.issubset(SLOW_FILES)


def test_the_list_names_files_that_exist_with_a_reason() -> None:
    """No entry outlives its file. Entries measured beside other jobs leave the list after an idle run."""
    assert all((ROOT / name).is_file() and reason for name, reason in SLOW_FILES.items())
    assert len(SLOW_FILES) <= 19


def test_a_slow_file_fails_a_session_that_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests pass, the exit status is 1, and the closing lines name the file; below the limit the status is 0."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (tmp_path / "test_one.py").write_text("import time\ndef test_one(): time.sleep(0.3)\n")
    for limit, status in (("0.1", 1), ("60", 0)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.labs.file_times", "--file-seconds", limit]
        ended = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert "1 passed" in ended.stdout and ("test_one.py took" in ended.stdout) == bool(status)
