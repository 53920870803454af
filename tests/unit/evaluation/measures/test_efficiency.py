"""Efficiency: the same requests for all models, in turns, timed after a warm-up."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures import efficiency
from ray_distill.evaluation.measures.efficiency import (
    BATCHES,
    UNSTEADY,
    WARM_UP,
    Runner,
    busy_note,
    bytes_of_folder,
    count_parameters,
    is_unsteady,
    latency_spread,
    measure_efficiency,
)


def runner(run, parameters=1):
    return Runner(run=run, parameters=parameters, bytes_on_disk=4 * parameters)


def test_models_take_turns_on_the_same_inputs():
    """After the warm-up every round asks each model once for the same examples, and another one goes first."""
    asked = []
    runners = {name: runner(lambda index, name=name: asked.append((name, tuple(index)))) for name in "ab"}
    measure_efficiency(runners, examples=3, requests=4, batch=2)
    singles = [(name, index) for name, index in asked if len(index) == 1][2 * WARM_UP :]
    assert singles == [
        ("a", (0,)),
        ("b", (0,)),
        ("b", (1,)),
        ("a", (1,)),
        ("a", (2,)),
        ("b", (2,)),
        ("b", (0,)),
        ("a", (0,)),
    ]
    batches = [index for name, index in asked if len(index) == 2 and name == "a"][WARM_UP:]
    assert len(batches) == BATCHES and batches[:3] == [(0, 1), (2, 0), (1, 2)]


def test_latency_and_throughput_are_those_of_the_model():
    """A model that takes 2 ms a request and 4 ms a batch of 8 shows both; the quick one is quicker."""

    def slow(index):
        end = time.perf_counter() + (0.002 if len(index) == 1 else 0.004)
        while time.perf_counter() < end:
            pass

    found = measure_efficiency({"slow": runner(slow, 9), "quick": runner(len, 2)}, examples=5, requests=20, batch=8)
    assert 2 <= found["slow"].latency_ms_p50 <= found["slow"].latency_ms_p95
    assert found["slow"].examples_per_second <= 2000 < found["quick"].examples_per_second
    assert found["quick"].latency_ms_p50 < found["slow"].latency_ms_p50
    assert (found["slow"].parameters, found["slow"].bytes_on_disk) == (9, 36)


def test_no_examples_is_an_error():
    """An empty split has no latency."""
    with pytest.raises(EvaluationError, match="empty"):
        measure_efficiency({"a": runner(len)}, examples=0, requests=10, batch=2)


def test_sizes(tmp_path):
    """Folders count all files below; tied parameters count once."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub" / "b").write_bytes(np.zeros(5, np.uint8).tobytes())
    assert bytes_of_folder(tmp_path) == 8
    layer = torch.nn.Linear(3, 2)
    assert count_parameters(torch.nn.ModuleList([layer, layer])) == 8


def test_a_busy_machine_is_measured_again_and_marked(monkeypatch):
    """Requests that vary are timed again, once; the steadier of both counts, and what still varies is unsteady."""
    clock, done = [0.0], []
    monkeypatch.setattr(efficiency, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def uneven(until):
        def run(index):
            done.append(index)
            clock[0] += 0.004 if len(done) <= until and len(done) % 2 else 0.001

        done.clear()
        return measure_efficiency({"a": runner(run)}, examples=1, requests=20, batch=1)["a"]

    calm = uneven(until=WARM_UP + 20)
    assert len(done) == 2 * (WARM_UP + 20) + WARM_UP + BATCHES
    assert calm.latency_ms_p50 == pytest.approx(1) and not is_unsteady(calm)
    busy = uneven(until=1000)
    assert len(done) == 2 * (WARM_UP + 20) + WARM_UP + BATCHES
    assert is_unsteady(busy) and busy.latency_spread > UNSTEADY
    assert busy_note([calm]) == "" and f"by up to {busy.latency_spread:.0%}" in busy_note([calm, busy])


def test_the_spread_is_that_of_the_quartiles():
    """One outlier of many does not make a machine busy; half of the requests do."""
    assert latency_spread([1.0] * 99 + [50.0]) == 0
    assert latency_spread([1.0, 1.0, 2.0, 2.0]) == pytest.approx(2 / 3)
