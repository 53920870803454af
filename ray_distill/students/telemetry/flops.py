"""Count the floating-point operations of a step, and provide the peak rates of devices."""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

#: Device names as torch reports them, and dense peaks in TFLOP/s of one device by precision. If a data sheet gives
#: peaks "with sparsity", half of that is used. The first matching pattern decides. Sources, as of November 2026:
#: NVIDIA data sheets of A100 (nvidia.com/en-us/data-center/a100), H100 (…/h100: SXM, PCIe and NVL), H200 (…/h200),
#: L4 (…/l4), L40S (…/l40s), T4 (…/tesla-t4); AMD's of MI300X (amd.com/en/products/accelerators/instinct/mi300).
PEAKS: tuple[tuple[str, Mapping[str, float]], ...] = (
    (r"\bA100\b", {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0}),
    (r"\bH100 PCIe\b", {"fp32": 51.0, "tf32": 378.0, "bf16": 756.5, "fp16": 756.5}),
    (r"\bH[12]00 NVL\b", {"fp32": 60.0, "tf32": 417.5, "bf16": 835.5, "fp16": 835.5}),
    (r"\bH[12]00\b", {"fp32": 67.0, "tf32": 494.5, "bf16": 989.5, "fp16": 989.5}),
    (r"\bL40S\b", {"fp32": 91.6, "tf32": 183.0, "bf16": 362.0, "fp16": 362.0}),
    (r"\bL4\b", {"fp32": 30.3, "tf32": 60.0, "bf16": 121.0, "fp16": 121.0}),
    (r"\bT4\b", {"fp32": 8.1, "fp16": 65.0}),  # it has no bf16
    (r"\bMI300X\b", {"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp16": 1307.4}),
)

_ATEN = torch.ops.aten
#: Attention operations that torch does not count; it counts neither of those for the CPU.
_FORWARD = (_ATEN._scaled_dot_product_flash_attention_for_cpu,)
_BACKWARD = (
    _ATEN._scaled_dot_product_efficient_attention_backward,
    _ATEN._scaled_dot_product_flash_attention_backward,
    _ATEN._scaled_dot_product_cudnn_attention_backward,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward,
)


def peak_flops(device_name: str, precision: Literal["fp32", "bf16", "fp16"], *, tf32: bool = False) -> float | None:
    """Return the peak FLOPs a second of a device; None if `PEAKS` does not have the device.

    Args:
        device_name: name of the device, as returned by ``torch.cuda.get_device_name``.
        precision: precision of the matrix products.
        tf32: whether float32 products may use TF32 (``torch.set_float32_matmul_precision``).
    """
    for pattern, peaks in PEAKS:
        if re.search(pattern, device_name):
            found = peaks.get("tf32" if precision == "fp32" and tf32 and "tf32" in peaks else precision)
            return None if found is None else found * 1e12
    return None


class FlopCount:
    """Counts the FLOPs of matrix products, convolutions and attention inside the context.

    The count is that of `torch.utils.flop_counter`, which intercepts the operations themselves. So frozen weights,
    adapters, a fused head, convolutions and users' own models are counted correctly; the formula 6 × parameters ×
    tokens would be wrong for them. Attention's backward pass counts twice its forward pass, without the scores that
    some kernels compute again.
    """

    def __init__(self) -> None:
        formulas: dict[Any, Any] = {**dict.fromkeys(_FORWARD, _attention), **dict.fromkeys(_BACKWARD, _attention_back)}
        self._mode = FlopCounterMode(display=False, custom_mapping=formulas)

    @property
    def total(self) -> int:
        """Number of FLOPs so far; a multiply-add counts as two."""
        return int(self._mode.get_total_flops())

    def __enter__(self) -> Self:
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: Any) -> None:
        self._mode.__exit__(*reason)  # type: ignore[no-untyped-call]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_back(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    return 2 * _attention(query, key, value)
