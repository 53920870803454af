"""A limit on the seconds of one test file, for `.ci/run`: ``pytest --file-seconds 120`` fails when a file took longer.

The times of setup, call and teardown are added up by file, so a fixture counts for the file that first uses it. Files
that may take longer are listed in `SLOW_FILES`, each with its reason.
"""

from collections import Counter
from collections.abc import Mapping

import pytest

#: Test files that may take longer than the limit, and why.
SLOW_FILES: Mapping[str, str] = {
    "tests/crash/test_labels_killed.py": "labels 212 units on a cluster of its own, undisturbed and twice with a kill",
    "tests/crash/test_labels_flaky_store.py": "labels on a failing store as often as it takes to fail everywhere",
    "tests/crash/test_label_command_flaky_store.py": "runs three commands with a Ray on a store whose requests fail",
    "tests/crash/test_training_killed.py": "trains on a cluster of two nodes, undisturbed and twice with a kill",
    "tests/cluster/test_submit.py": "submits five jobs to a head of its own, each with an environment",
    "tests/cluster/test_sweep.py": "submits a sweep of twelve trials to a head of its own, twice",
    "tests/e2e/test_campaign_language.py": "runs whole campaigns of texts and of conversations",
    "tests/e2e/test_campaign_pairs.py": "runs whole campaigns of pairs, one with targets that the teacher writes",
    "tests/e2e/test_relabel.py": "relabels nine times, and checks the teacher in a task each time",
    "tests/e2e/test_teacher_failures.py": "waits for hanging teachers to reach their time limit",
    "tests/e2e/test_two_labellers.py": "labels with two commands at once, on a local store and on an object store",
    "tests/e2e/test_writing.py": "generates texts on a Ray, killed midway, and labels and trains from them",
    "tests/e2e/test_campaign_text.py": "runs the whole campaign that it looks at, and another file continues",
    "tests/e2e/test_canary.py": "runs two whole commands, each with a Ray of its own",
    "tests/e2e/test_hostile.py": "runs more than a hundred commands, some against servers that never answer",
    "tests/e2e/test_interruption.py": "starts two commands, each with a Ray of its own, and interrupts them",
    "tests/e2e/test_vllm.py": "loads models in vLLM and in transformers, and writes with both",
    "tests/golden/test_language_golden.py": "unpacks a model of 135 M parameters and learns from 49,152 logits a token",
    "tests/golden/test_training_curves.py": "trains on up to four ranks on two cores, with five engines",
}


def too_slow(seconds: Mapping[str, float], limit: float, allowed: Mapping[str, str]) -> list[str]:
    """Return one line for each file over the limit that has no reason to be, the slowest first."""
    return [
        f"{name} took {spent:.0f} s, more than {limit:g} s: make it faster, or state a reason in {__name__}.SLOW_FILES"
        for name, spent in sorted(seconds.items(), key=lambda item: -item[1])
        if spent > limit and name not in allowed
    ]


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
        """Print the ten slowest files, and those that took too long."""
        terminalreporter.section("slowest files")
        for name, spent in self._seconds.most_common(10):
            reason = f"  ({SLOW_FILES[name]})" if name in SLOW_FILES else ""
            terminalreporter.line(f"{spent:7.1f}s {name}{reason}")
        for line in self._late():
            terminalreporter.line(f"ERROR {line}", red=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first, so that at the end no worker is left alone with one."""
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
