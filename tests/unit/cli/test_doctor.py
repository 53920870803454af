"""What the doctor finds, and what it tells people to do about it."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ray_distill.cli import doctor, doctor_checks
from ray_distill.cli.doctor_checks import Finding
from ray_distill.config import Campaign, parse_config

FUNCTION = "ray_distill.testing.models:tiny_text_model"


def _config(tmp_path: Path, **changes: object) -> Campaign:
    (tmp_path / "rows.jsonl").write_text('{"text": "one", "label": "a"}\n')
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(tmp_path / "out"),
            "snapshot": {"source": str(tmp_path / "rows.jsonl"), "columns": {"label": "label"}},
            "labels": {"teacher": {"model": FUNCTION, "arguments": {"classes": ["a", "b"]}}},
            "student": {"model": {"from": "module", "model": FUNCTION}},
            **changes,
        }
    )


class _Answer(BaseHTTPRequestHandler):
    """A server that answers 200 to /health below /good, 403 to all else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/good/health" else 403)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[str]:
    """A real HTTP server on a free port."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def _closed_port() -> str:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    httpd.server_close()
    return f"http://127.0.0.1:{httpd.server_port}"


def test_this_machine_passes_every_check_that_concerns_it(tmp_path: Path) -> None:
    """Where the tests run, nothing fails, each check has its own name, and only what was named is looked at."""
    findings = doctor.diagnose(_config(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"}))
    assert [finding for finding in findings if finding.ok == "fail"] == []
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {"packages", "c++ compiler", "ray token", "label store", "tracking"} <= set(names)
    assert "cluster" not in names


def test_without_a_config_neither_store_nor_tracking_nor_cluster_is_looked_at() -> None:
    """Nothing is guessed: what was not named is not checked."""
    assert {"label store", "tracking", "cluster"}.isdisjoint(finding.name for finding in doctor.diagnose())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"labels": {"teacher": {"model": "/nowhere/teacher"}}}, "labels.teacher.model: /nowhere/teacher does not"),
        ({"labels": {"teacher": {"model": f"{FUNCTION}s"}}}, "cannot import"),
        ({"snapshot": {"source": "/nowhere/rows.jsonl"}}, "/nowhere/rows.jsonl"),
        ({"gate": {"limits": {"acuracy": {"min": 0.9}}}}, "gate.limits.acuracy"),
        ({"student": {"model": {"from": "checkpoint", "model": "/nowhere/student"}}}, "no checkpoint folder /nowhere"),
    ],
)
def test_a_campaign_is_checked_as_its_dry_run_does(tmp_path: Path, changes: dict[str, object], found: str) -> None:
    """Its models are opened: a teacher that is not there is a failure, with its field."""
    findings = {finding.name: finding for finding in doctor.diagnose(_config(tmp_path, **changes))}
    assert findings["campaign"].ok == "fail" and found in findings["campaign"].found
    assert "--dry-run" in findings["campaign"].mend


def test_whatever_is_not_ok_says_how_to_mend_it(tmp_path: Path) -> None:
    """Every warning and failure carries a remedy."""
    findings = doctor.diagnose(
        _config(tmp_path), store_url=str(tmp_path), tracking_uri=_closed_port(), address=_closed_port()
    )
    assert [finding.name for finding in findings if finding.ok != "ok" and not finding.mend] == []


def test_a_missing_compiler_and_ninja_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing on PATH, one sentence says what to install."""
    compiler = doctor_checks.check_compiler({"PATH": str(tmp_path)})
    assert (compiler.ok, compiler.found) == ("warn", "no g++ or c++ or clang++ on PATH")
    assert "apt-get install g++" in compiler.mend
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert doctor_checks.check_ninja({"PATH": str(tmp_path)}).mend == "Install it: pip install ninja."


def test_the_compiler_that_cxx_names_is_the_one_looked_for(tmp_path: Path) -> None:
    """CXX wins over what lies on PATH."""
    named = doctor_checks.check_compiler({"PATH": os.environ["PATH"], "CXX": str(tmp_path / "nothing")})
    assert named.ok == "warn"
    assert "nothing" in named.found


def test_an_old_python_fails() -> None:
    """The finding names the version found; the remedy names the one needed."""
    finding = doctor_checks.check_python((3, 10, 4))
    assert (finding.ok, finding.found) == ("fail", "3.10.4")
    assert "3.11" in finding.mend


def test_a_missing_or_old_package_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are found in one look."""
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["surely-not-there>=1", "numpy>=999", "pyyaml"])
    finding = doctor_checks.check_packages()
    assert finding.ok == "fail"
    assert "surely-not-there is missing, >=1 is needed" in finding.found
    assert "numpy is " in finding.found
    assert "pyyaml" not in finding.found


def test_a_config_that_wants_more_than_this_machine_has_is_a_warning(tmp_path: Path) -> None:
    """Cores and GPUs are compared with the larger of labelling and training."""
    config = _config(tmp_path, student={"training": {"workers": 4096, "global_batch": 4096, "gpus": 1}})
    assert doctor_checks.check_cores(config).ok == "warn"
    assert "requires 4096" in doctor_checks.check_cores(config).found
    assert doctor_checks.check_gpus(config).ok == "warn"


def test_a_token_is_found_but_never_shown(tmp_path: Path) -> None:
    """From the variable, from the named file, from the home folder; and a named file that is not there fails."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("hush\n")
    for environment in (
        {"RAY_AUTH_TOKEN": "hush"},
        {"RAY_AUTH_TOKEN_PATH": str(tmp_path / ".ray" / "auth_token")},
        {"HOME": str(tmp_path)},
    ):
        finding = doctor_checks.check_token(environment)
        assert finding.ok == "ok"
        assert "hush" not in str(finding)
    assert doctor_checks.check_token({"HOME": str(tmp_path / "nobody")}).ok == "warn"
    assert doctor_checks.check_token({"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}).ok == "warn"
    assert doctor_checks.check_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")}).ok == "fail"
    unreadable = doctor_checks.check_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path)})
    assert (unreadable.ok, str(tmp_path) in unreadable.found) == ("fail", True)


def test_an_unset_tracking_uri_is_told_as_the_sqlite_it_will_be(tmp_path: Path) -> None:
    """Beside the campaign's output; with tracking off nothing is said."""
    found = {finding.name: finding for finding in doctor.diagnose(_config(tmp_path))}["tracking"]
    assert found.ok == "ok"
    assert f"sqlite:///{tmp_path}/out/mlflow.db (tracking.uri is not set)" in found.found
    off = doctor.diagnose(_config(tmp_path, tracking={"enabled": False}))
    assert "tracking" not in {finding.name for finding in off}


def test_a_store_without_exclusive_create_says_that_nothing_enforces_one_labeller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule is the user's to keep."""
    monkeypatch.setattr("ray_distill.storage.files.create_exclusive", lambda url, data: Path(url).write_bytes(data))
    finding = doctor_checks.check_store(str(tmp_path))
    assert finding.ok == "fail"
    assert "one labeller at a time" in finding.mend
    assert "nothing enforces" in finding.mend


def test_the_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    """The probe is deleted, and a store that does not exist yet is not made."""
    finding = doctor_checks.check_store(str(tmp_path / "labels" / "store"))
    assert finding.ok == "ok"
    assert "exclusive create works" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_fails() -> None:
    """Below a file nothing can be made."""
    finding = doctor_checks.check_store("/dev/null/store") if os.geteuid() else doctor_checks.check_store("/proc/store")
    assert finding.ok == "fail"
    assert finding.mend


def test_the_tracking_server_is_asked_for_its_health(server: str) -> None:
    """An answer is fine, 403 points at the allowed hosts, silence at the server."""
    assert doctor_checks.check_tracking(f"{server}/good").ok == "ok"
    refused = doctor_checks.check_tracking(server)
    assert (refused.ok, "--allowed-hosts" in refused.mend) == ("warn", True)
    silent = doctor_checks.check_tracking(_closed_port())
    assert (silent.ok, "does not answer" in silent.found) == ("warn", True)


def test_a_password_of_the_tracking_server_is_sent_and_not_shown(server: str) -> None:
    """A URI with a user is checked as MLflow's client uses it; findings leave the password out."""
    uri = server.replace("://", "://me:hunter2@")
    found = [doctor_checks.check_tracking(f"{uri}/good"), doctor_checks.check_tracking(uri)]
    found.append(doctor_checks.check_tracking("postgresql://me:hunter2@db/mlflow"))
    assert [finding.ok for finding in found] == ["ok", "warn", "warn"]
    assert not [finding for finding in found if "hunter2" in finding.found + finding.mend]


def test_a_cluster_that_is_not_there_says_how_to_start_one() -> None:
    """The remedy is the command."""
    finding = doctor_checks.check_cluster(_closed_port())
    assert finding.ok == "fail"
    assert "ray start --head" in finding.mend


def test_findings_read_well_and_as_json() -> None:
    """The terminal shows the remedy below its finding; JSON says whether anything failed."""
    findings = [
        Finding(name="python", ok="ok", found="3.11.7"),
        Finding(name="ninja", ok="fail", found="not on PATH", mend="Install it."),
    ]
    assert doctor.render(findings).splitlines() == [
        "ok    python  3.11.7",
        "fail  ninja   not on PATH",
        "              → Install it.",
        "2 checks: 1 failed, 0 warnings",
    ]
    value = json.loads(doctor.to_json(findings))
    assert value["ok"] is False
    assert value["findings"][1] == {"name": "ninja", "ok": "fail", "found": "not on PATH", "mend": "Install it."}
