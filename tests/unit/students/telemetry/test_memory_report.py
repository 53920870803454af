"""Running out of memory is told in terms of what takes it and of settings that would fit."""

import subprocess
import sys

import pytest
import torch

from ray_distill.config import TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.students.telemetry.memory_report import (
    GIB,
    Sizes,
    is_out_of_memory,
    memory_explained,
    resident_bytes,
    suggestion,
)

#: 1e9 parameters, all trained.
SIZES = Sizes(all=10**9, trained=10**9)

#: A process that may have two more GiB than it starts with, and a pass that needs eight.
STARVED = """
import resource
import torch
from ray_distill.config import TrainingConfig
from ray_distill.students.telemetry.memory_report import Sizes, memory_explained

pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 2**30,) * 2)
bundle = torch.nn.Linear(4096, 4096)
with memory_explained("student", Sizes.of(bundle), TrainingConfig(engine="torch"), 1):
    bundle(torch.ones(2**19, 4096))
"""


def settings(**values: object) -> TrainingConfig:
    return TrainingConfig.model_validate(values)


@pytest.mark.parametrize(
    ("values", "world", "expected"),
    [
        ({"engine": "torch"}, 1, (4.0, 4.0, 8.0)),
        ({"zero_stage": 0, "precision": "bf16"}, 4, (2.0, 2.0, 12.0)),
        ({"zero_stage": 1, "precision": "bf16"}, 4, (2.0, 2.0, 3.0)),
        ({"zero_stage": 2, "precision": "bf16"}, 4, (2.0, 0.5, 3.0)),
        ({"zero_stage": 3, "precision": "bf16"}, 4, (0.5, 0.5, 3.0)),
        ({"zero_stage": 2, "precision": "bf16", "offload": "optimizer"}, 4, (2.0, 0.5, 0.0)),
        ({"zero_stage": 3, "precision": "bf16", "offload": "all"}, 4, (0.0, 0.5, 0.0)),
    ],
)
def test_what_a_rank_holds(values: dict[str, object], world: int, expected: tuple[float, ...]) -> None:
    """Gigabytes of a billion parameters, as the paper on ZeRO counts: 2 + 2 + 12 bytes each, cut by stage."""
    assert [size / 1e9 for size in resident_bytes(SIZES, settings(**values), world).values()] == list(expected)


@pytest.mark.parametrize(
    ("values", "activations", "limit", "expected"),
    [
        ({"engine": "torch", "micro_batch": 64}, 40, 40, "micro_batch: 32"),
        ({"zero_stage": 1, "precision": "bf16", "micro_batch": 4}, 100, 40, "micro_batch: 1"),
        ({"zero_stage": 1, "precision": "bf16", "micro_batch": 1}, 30, 24, "activation_checkpointing: true"),
        ({"zero_stage": 1, "precision": "bf16", "micro_batch": 1}, 10, 10, "zero_stage: 2"),
        ({"zero_stage": 1, "precision": "bf16", "micro_batch": 1}, 1, 1.3, "zero_stage: 3, offload: all"),
        ({"zero_stage": 1, "precision": "bf16", "micro_batch": 1}, 1, 0.5, None),
    ],
)
def test_the_mildest_change_that_fits(
    values: dict[str, object], activations: float, limit: float, expected: str | None
) -> None:
    """Smaller micro-batches first, then recomputed activations, then partitions, then the host's memory."""
    found = suggestion(SIZES, settings(**values), 4, activations=activations * GIB, limit=limit * GIB)
    assert found is not None and expected is not None and expected in found if expected else found is None


@pytest.mark.parametrize(
    ("values", "least", "expected"),
    [
        ({"micro_batch": 48}, 6, "micro_batch: 12"),
        ({"micro_batch": 48}, 18, "micro_batch: 18"),
        ({"micro_batch": 48}, 24, None),
        ({"micro_tokens": 4096}, 300, "micro_tokens: 1024"),
        ({"micro_tokens": 4096}, 1500, "micro_tokens: 1500"),
        ({"micro_tokens": 4096}, 3000, None),
    ],
)
def test_a_pass_holds_a_group_and_the_longest_example(
    values: dict[str, object], least: int, expected: str | None
) -> None:
    """A setting that training would refuse is no advice; 0.4 of the room is there."""
    found = suggestion(
        Sizes(all=0, trained=0),
        settings(engine="torch", activation_checkpointing=True, **values),
        1,
        activations=90 * GIB,
        limit=40 * GIB,
        least=least,
    )
    assert found == expected


def test_a_process_without_memory_says_what_took_it() -> None:
    """The real refusal of torch's CPU allocator."""
    ran = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=False)
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ray_distill.errors.TrainingError: student: out of memory on the CPU of "), ran.stderr
    assert "parameters 0.06, gradients 0.06, optimiser states 0.13, activations, logits and all else at least 8" in last
    assert "it fits with student.training {micro_batch: " in last


def test_other_errors_pass() -> None:
    """A defect is no lack of memory."""
    with pytest.raises(RuntimeError, match="shapes differ"), memory_explained("student", SIZES, settings(), 1):
        raise RuntimeError("shapes differ")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


def test_the_failed_allocation_counts() -> None:
    """What was asked for and not given is part of the need."""
    with (
        pytest.raises(TrainingError, match=r"all else at least 20\d\d\."),
        memory_explained("student", Sizes(all=0, trained=0), settings(), 1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2000.00 GiB.")
