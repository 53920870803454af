"""Compare tensors, and structures of tensors."""

from typing import Any

import torch


def assert_equal(found: Any, expected: Any) -> None:
    """Require the same tensors, bit for bit, on any device."""
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(found, tuple):
        assert len(found) == len(expected)
        for own, other in zip(found, expected, strict=True):
            assert_equal(own, other)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for name in found:
            assert_equal(found[name], expected[name])
    elif hasattr(found, "__dataclass_fields__"):
        assert_equal(vars(found), vars(expected))
    else:
        assert found == expected
