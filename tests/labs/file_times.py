"""A limit on the seconds of one test file, for `.ci/run`: ``pytest --file-seconds 120`` fails when a file took longer.

The times of setup, call and teardown are added up by file, so a fixture counts for the file that first uses it. Files
that may take longer are listed in `SLOW_FILES`, each with its reason. A slow machine makes every file slow: a file is
over the limit only where it also took more than a twentieth of the time of all files.

Of the slow files a run takes a third, drawn from its commit, and always those in `ALWAYS` (see `tests.labs.drawn`).
"""

from collections import Counter
from collections.abc import Mapping

import pytest

from tests.labs import drawn

#: The share of the time of all files that a file may take on any machine.
SHARE = 1 / 20
#: Slow files that every run takes: a campaign from end to end, and what is left by a kill.
ALWAYS = frozenset(
    {
        "tests/crash/test_labels_killed.py",
        "tests/crash/test_training_killed.py",
        "tests/e2e/test_campaign_text.py",
        "tests/golden/test_training_curves.py",
    }
)
#: Test files that may take longer than the limit, the slowest first, and why.
SLOW_FILES: Mapping[str, str] = {
    "tests/e2e/test_writing.py": "generates texts on a Ray, killed midway, and labels and trains from them",
    "tests/e2e/test_hostile.py": "runs more than a hundred commands, some against servers that never answer",
    "tests/e2e/test_interruption.py": "starts two commands, each with a Ray of its own, and interrupts them",
    "tests/e2e/test_teacher_failures.py": "waits for hanging teachers to reach their time limit",
    "tests/golden/test_language_golden.py": "unpacks a model of 135 M parameters and learns from 49,152 logits a token",
    "tests/e2e/test_relabel.py": "relabels nine times, and checks the teacher in a task each time",
    "tests/e2e/test_vllm.py": "loads models in vLLM and in transformers, and writes with both",
    "tests/crash/test_training_killed.py": "trains on a cluster of two nodes, undisturbed and twice with a kill",
    "tests/cluster/test_sweep.py": "submits a sweep of twelve trials to a head of its own, twice",
    "tests/golden/test_training_curves.py": "trains on up to four ranks on two cores, with five engines",
    "tests/e2e/test_campaign_pairs.py": "runs whole campaigns of pairs, one with targets that the teacher writes",
    "tests/crash/test_label_command_flaky_store.py": "runs three commands with a Ray on a store whose requests fail",
    "tests/crash/test_labels_flaky_store.py": "labels on a failing store as often as it takes to fail everywhere",
    "tests/e2e/test_campaign_language.py": "runs whole campaigns of texts and of conversations",
    "tests/e2e/test_two_labellers.py": "labels with two commands at once, on a local store and on an object store",
    "tests/e2e/test_campaign_text.py": "runs the whole campaign that it looks at, and another file continues",
    "tests/crash/test_labels_killed.py": "labels 212 units on a cluster of its own, undisturbed and twice with a kill",
    "tests/e2e/test_canary.py": "runs two whole commands, each with a Ray of its own",
    "tests/cluster/test_submit.py": "submits five jobs to a head of its own, each with an environment",
}


def too_slow(seconds: Mapping[str, float], limit: float, allowed: Mapping[str, str]) -> list[str]:
    """Return one line for each file over the limit that has no reason to be, the slowest first."""
    most = max(limit, SHARE * sum(seconds.values()))
    return [
        f"{name} took {spent:.0f} s, more than {most:.4g} s: make it faster, or state a reason in {__name__}.SLOW_FILES"
        for name, spent in sorted(seconds.items(), key=lambda item: -item[1])
        if spent > most and name not in allowed
    ]


def left_out(commit: str | None = None) -> frozenset[str]:
    """Return the slow files that the run of a commit leaves to others; none where no commit is set."""
    return drawn.left_out([name for name in SLOW_FILES if name not in ALWAYS], parts=3, commit=commit)


class FileTimes:
    """Adds up seconds by test file, and fails the session at its end when a file took too long."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._seconds: Counter[str] = Counter()  # type: ignore[type-arg]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the time of one phase of one test."""
        self._seconds[report.nodeid.partition("::")[0]] += report.duration

    def _late(self) -> list[str]:
        return too_slow(self._seconds, self._limit, SLOW_FILES)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a session that passed into one that failed."""
        if self._late() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the ten slowest files, those left to other commits, and those that took too long."""
        terminalreporter.section("slowest files")
        for name, spent in self._seconds.most_common(10):
            reason = f"  ({SLOW_FILES[name]})" if name in SLOW_FILES else ""
            terminalreporter.line(f"{spent:7.1f}s {name}{reason}")
        if others := left_out():
            terminalreporter.line(f"left to other commits: {', '.join(sorted(others))}")
        for line in self._late():
            terminalreporter.line(f"ERROR {line}", red=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put slow files first, so that at the end no worker is left alone with one, and leave out those not drawn."""
    others = left_out()
    deselected = [item for item in items if item.nodeid.partition("::")[0] in others]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item.nodeid.partition("::")[0] not in others]
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in SLOW_FILES)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that sets the limit."""
    parser.addoption(
        "--file-seconds", type=float, metavar="SECONDS", help="fail when a test file takes longer than this in all"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Watch the times where a limit is set; with xdist, only in the process that receives all reports."""
    limit = config.getoption("--file-seconds")
    if limit is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FileTimes(limit), "file-times")
