"""Make tensors of ragged features: padded token ids and their attention masks.

Imports torch when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.inputs.modality import Index

if TYPE_CHECKING:
    from torch import Tensor


def pad_sequences(feature: RaggedArray, index: Index) -> Tensor:
    """Return rows ``index`` of a feature, padded at the end: ``[B, L, *inner]``.

    Whole numbers become int64.
    """
    import torch

    starts, lengths = feature.offsets[index], feature.offsets[index + 1] - feature.offsets[index]
    longest = int(lengths.max(initial=0))
    steps = np.arange(longest)
    real_BL = steps < lengths[:, None]
    flat = (starts[:, None] + steps)[real_BL]
    kind = np.int64 if np.issubdtype(feature.values.dtype, np.integer) else feature.values.dtype
    out = np.full((len(index), longest, *feature.values.shape[1:]), feature.pad, dtype=kind)
    out[real_BL] = feature.values[flat]
    return torch.from_numpy(out)


def real_tokens(feature: RaggedArray, index: Index) -> Tensor:
    """Return the attention mask of `pad_sequences`: int64 ``[B, L]``, 1 on real tokens."""
    import torch

    lengths = feature.offsets[index + 1] - feature.offsets[index]
    return torch.from_numpy((np.arange(int(lengths.max(initial=0))) < lengths[:, None]).astype(np.int64))
