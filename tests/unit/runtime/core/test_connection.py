"""What a cluster can hold, and what happens when it cannot: Ray itself is replaced, nothing is started."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_distill.errors import ClusterError
from ray_distill.redact import hiding, redact
from ray_distill.runtime.core import connection

SMALL = {"CPU": 4.0, "memory": 1e9}
LARGE = {"CPU": 8.0, "GPU": 2.0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the autoscaler was asked for; it does nothing by itself."""
    requests: list[Any] = []
    monkeypatch.setattr(connection, "_request", lambda bundles: requests.append([dict(bundle) for bundle in bundles]))
    monkeypatch.setattr(connection, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(connection, "SCALE_SECONDS", 0.05)
    return requests


def _nodes(monkeypatch: pytest.MonkeyPatch, *states: Sequence[dict[str, float]]) -> None:
    """The nodes at each look, the last for ever."""
    left = list(states)
    monkeypatch.setattr(connection, "_nodes", lambda: list(left.pop(0) if len(left) > 1 else left[0]))


@pytest.mark.parametrize(
    ("bundles", "fits"),
    [
        ([{"CPU": 4}], True),
        ([{"CPU": 4, "GPU": 0}], True),
        ([{"CPU": 9}], False),
        ([{"CPU": 1, "GPU": 2}, {"CPU": 1}], True),
        ([{"GPU": 1}] * 3, False),
        ([{"CPU": 4}] * 4, False),
        ([], True),
    ],
)
def test_each_bundle_fits_a_node_and_all_fit_the_cluster(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any], bundles: list[dict[str, float]], fits: bool
) -> None:
    """One node must hold a bundle, all nodes the sum."""
    _nodes(monkeypatch, [SMALL, LARGE])
    if fits:
        connection.require_bundles(bundles, "labelling")
        assert asked == []
    else:
        with pytest.raises(ClusterError, match=r"labelling needs .* on one node; the nodes have 4 CPU and 0 GPU, 8"):
            connection.require_bundles(bundles, "labelling")


def test_a_cluster_that_grows_in_time_is_enough(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked once, told once, and the request is withdrawn."""
    _nodes(monkeypatch, [SMALL], [SMALL], [SMALL, LARGE])
    connection.require_resources(cpus=1, gpus=1, what="training")
    assert asked == [[{"CPU": 1, "GPU": 1}], []]
    assert capsys.readouterr().err.count("waiting up to") == 1


def test_a_cluster_that_does_not_grow_is_refused_and_an_embedded_one_at_once(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    """The embedded one is not even asked."""
    _nodes(monkeypatch, [SMALL])
    with pytest.raises(ClusterError, match="training needs 1 CPU and 1 GPU on one node"):
        connection.require_resources(cpus=1, gpus=1, what="training")
    assert asked == [[{"CPU": 1, "GPU": 1}], []]
    monkeypatch.setattr(connection.console, "report", lambda text: pytest.fail(text))
    connection._embedded.set()
    try:
        with pytest.raises(ClusterError, match=r"2 × 3 CPU on one node; the nodes have 4 CPU and 0 GPU: change"):
            connection.require_bundles([{"CPU": 3}] * 2, "labelling")
    finally:
        connection._embedded.clear()


@pytest.mark.parametrize("error", [connection.ray.exceptions.AuthenticationError("no"), PermissionError("no")])
def test_a_refused_token_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As is a file that Ray cannot read or write."""

    def refuse(**options: Any) -> None:
        raise error

    monkeypatch.setattr(connection.ray, "init", refuse)
    with pytest.raises(ClusterError, match="no Ray cluster answers at auto"), connection.connected("auto"):
        pass


@pytest.mark.parametrize(("failures", "starts"), [(1, 2), (2, 2)])
def test_ray_is_started_again_where_the_machine_was_too_busy(
    monkeypatch: pytest.MonkeyPatch, failures: int, starts: int
) -> None:
    """Once; a machine that needs more than twice the time is told of."""
    tries: list[str] = []

    def init(**_: object) -> None:
        tries.append("init")
        if len(tries) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(connection.ray, "init", init)
    monkeypatch.setattr(connection.ray, "shutdown", lambda: None)
    if failures < starts:
        connection._start(None)
        connection._embedded.clear()
    else:
        with pytest.raises(ClusterError, match="timed out during startup"):
            connection._start(None)
    assert len(tries) == starts


def test_an_embedded_ray_says_that_it_is_not_the_one_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself would join it; here --address decides."""
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(connection.ray, "init", lambda **options: started.append(options))
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    connection._start(None)
    connection._embedded.clear()
    connection._start("auto")
    assert [options["address"] for options in started] == ["local", "auto"]
    assert capsys.readouterr().err.count("RAY_ADDRESS=http://head:8265 is not used: without --address") == 1


@pytest.mark.parametrize(
    ("home", "variables", "has_one"),
    [
        ("file/below", {}, True),
        ("empty", {}, False),
        ("file/below", {"RAY_AUTH_MODE": "disabled"}, False),
        ("file/below", {"RAY_AUTH_TOKEN_PATH": "/token"}, False),
    ],
)
def test_an_embedded_ray_has_a_token_where_the_home_cannot_keep_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, variables: dict[str, str], has_one: bool
) -> None:
    """As for a user without a home, or with a read-only one; what the user sets is left as it is."""
    (tmp_path / "file").touch()
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, variables.get(name, ""))
    monkeypatch.setenv("HOME", str(tmp_path / home))
    with hiding():
        connection._have_a_token()
        token = os.environ["RAY_AUTH_TOKEN"]
        assert bool(token) is has_one
        assert not token or redact(f"the token {token}") == "the token …"
