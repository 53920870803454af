"""Where a step's time goes, what it got done, and what is known of the device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.flops import FlopCount, peak_flops
from ray_distill.students.telemetry.step_timer import PARTS, StepMeter, Stopwatch, is_measured, peak_memory, tokens_of
from ray_distill.testing.models import write_tiny_causal_model


class Ticks:
    """A clock whose moments are given."""

    def __init__(self, *moments: float) -> None:
        self._moments: Iterator[float] = iter(moments)
        self.settled: list[float] = []

    def mark(self) -> float:
        return next(self._moments)

    def settle(self, mark: float) -> None:
        self.settled.append(mark)

    def seconds(self, first: float, second: float) -> float:
        assert self.settled, "read before the last mark has passed"
        return second - first


def test_a_part_within_another_is_taken_out_of_it() -> None:
    """Reduction inside the backward pass counts once; what is in no part is other; the parts sum to the whole."""
    clock = Ticks(0, 1, 4, 5, 7, 17, 20, 21)
    watch = Stopwatch(clock)
    watch.start()
    with watch.part("data"):
        pass
    with watch.part("backward"), watch.part("communication"):
        pass
    seconds = watch.stop()
    assert seconds == {**dict.fromkeys(PARTS, 0.0), "data": 3, "backward": 2 + 3, "communication": 10, "other": 3}
    assert clock.settled == [21]


def test_a_step_that_failed_leaves_nothing_behind() -> None:
    """The next step begins anew."""
    watch = Stopwatch(Ticks(0, 1, 2, 100, 103))
    watch.start()
    with pytest.raises(RuntimeError), watch.part("forward"):
        raise RuntimeError("out of memory")
    watch.start()
    assert watch.stop() == {**dict.fromkeys(PARTS, 0.0), "other": 3}


def test_the_metrics_of_a_step() -> None:
    """Rates over the whole step, the share of waiting for data, and no utilisation where no peak is known."""
    meter = StepMeter(clock=Ticks(0, 0, 1, 4))
    with meter.start().part("data"):
        pass
    with meter.counted():
        torch.ones(2, 2) @ torch.ones(2, 2)
    found = meter.stop(8, *meter.work([{"input_ids": torch.ones(2, 3)}]))
    assert found == {
        "examples_per_second": 2.0,
        "tokens_per_second": 1.5,
        "data_wait": 0.25,
        "seconds_step": 4.0,
        "seconds_data": 1.0,
        "seconds_other": 3.0,
        **{f"seconds_{name}": 0.0 for name in ("forward", "backward", "optimizer", "communication")},
    }
    assert all(is_measured(name) for name in found) and not is_measured("loss_soft")


@pytest.mark.parametrize(("recomputes", "name"), [(False, "mfu"), (True, "hfu")])
def test_utilisation_is_of_all_devices_and_scales_with_the_tokens(recomputes: bool, name: str) -> None:
    """Counted in the first step, told from the second on: twice the tokens in the same time are twice the FLOPs."""
    meter = StepMeter(world=2, peak=100.0, recomputes=recomputes, clock=Ticks(0, 2, 2, 4, 4, 6))
    batch: dict[str, Any] = {"input_ids": torch.ones(1, 4)}
    meter.start()
    with meter.counted():
        torch.ones(2, 3) @ torch.ones(3, 5)
    tokens, flops = meter.work([batch])
    assert (tokens, flops) == (4, 2 * 2 * 3 * 5)
    assert name not in meter.stop(1, tokens, flops)
    for scale in (1, 2):
        meter.start()
        with meter.counted():
            torch.ones(2, 3) @ torch.ones(3, 5)
        tokens, flops = meter.work([batch] * scale)
        assert flops == 0
        assert meter.stop(1, tokens, flops)[name] == pytest.approx(scale * 60 / 2 / 200)


def test_tokens_are_those_a_model_reads() -> None:
    """Without padding where a mask says so; source and target; packed rows whole; images have none."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    ids = torch.zeros(2, 3, dtype=torch.int64)
    assert tokens_of({"input_ids": ids, "attention_mask": mask}) == 3
    assert tokens_of({"input_ids": ids, "attention_mask": mask, "decoder_attention_mask": torch.ones(2, 2)}) == 7
    assert tokens_of({"input_ids": ids, "position_ids": ids}) == 6
    assert tokens_of({"pixel_values": torch.zeros(2, 3, 8, 8)}) == 0


class Several(Ranks):
    """Ranks that hold so many bytes each."""

    def gather(self, value: Any) -> list[Any]:
        return [value * (rank + 1) for rank in range(self.world)]


def test_peak_memory_by_rank_or_its_extremes() -> None:
    """One metric a rank up to eight of them, then two."""
    cpu = torch.device("cpu")
    few = peak_memory(Several(rank=0, world=2), cpu, own=lambda _: 2**30)
    assert few == {"peak_memory_gib_rank_0": 1.0, "peak_memory_gib_rank_1": 2.0}
    many = peak_memory(Several(rank=0, world=9), cpu, own=lambda _: 2**29)
    assert many == {"peak_memory_gib_max": 4.5, "peak_memory_gib_min": 0.5}


def test_peak_memory_of_this_process() -> None:
    """In the right unit: torch alone takes more than 50 MiB, and no test a terabyte."""
    found = peak_memory(Ranks(rank=0, world=1), torch.device("cpu"))
    assert list(found) == ["peak_memory_gib_rank_0"] and 0.05 < found["peak_memory_gib_rank_0"] < 1024


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA A100-PCIE-40GB", "fp32", False, 19.5),
        ("NVIDIA A100-SXM4-40GB", "fp32", True, 156),
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.5),
        ("NVIDIA H100 PCIe", "fp16", False, 756.5),
        ("NVIDIA H100 NVL", "bf16", False, 835.5),
        ("NVIDIA H200", "bf16", False, 989.5),
        ("NVIDIA L4", "bf16", False, 121),
        ("NVIDIA L40S", "bf16", False, 362),
        ("Tesla T4", "fp16", False, 65),
        ("Tesla T4", "fp32", True, 8.1),
        ("AMD Instinct MI300X", "bf16", False, 1307.4),
    ],
)
def test_peaks_by_device_and_precision(name: str, precision: Any, tf32: bool, tera: float) -> None:
    """Dense ones, by the name that torch tells."""
    assert peak_flops(name, precision, tf32=tf32) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("NVIDIA GeForce RTX 3090", "bf16"), ("NVIDIA L40", "bf16"), ("Tesla T4", "bf16"), ("NVIDIA A10G", "bf16")],
)
def test_no_peak_is_made_up(name: str, precision: Any) -> None:
    """Devices and precisions without a data sheet here, similar names among them."""
    assert peak_flops(name, precision) is None


def test_flops_of_a_transformer_are_six_a_parameter_and_token_and_attention(tmp_path: Any) -> None:
    """Forward and backward against the closed form: 6 × matrix parameters, and 12 × width × length of attention a layer
    (arXiv 2204.02311, appendix B); the embedding's own look-up multiplies nothing.
    """
    from transformers import AutoModelForCausalLM

    folder = write_tiny_causal_model(tmp_path / "model", seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    batch, length = 3, 16
    ids = torch.ones(batch, length, dtype=torch.int64)
    with FlopCount() as count:
        model(input_ids=ids).logits.sum().backward()
    tokens, config = batch * length, model.config
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    attention = 12 * config.num_hidden_layers * width * length * tokens
    assert count.total == 6 * matrices * tokens + attention


def test_flops_of_frozen_weights_have_no_gradient_of_theirs() -> None:
    """A frozen first layer needs its forward product alone, a frozen one above it that and the gradient passed down."""
    layers = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    layers[0].requires_grad_(False)
    layers[2].requires_grad_(False)
    with FlopCount() as count:
        layers(torch.ones(5, 4)).sum().backward()
    product = 2 * 5 * 4 * 4
    assert count.total == product * (3 + 1 + 1)  # three forward; the middle's weight; passed down through the last
