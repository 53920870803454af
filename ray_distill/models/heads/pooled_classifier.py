"""A classifier of an encoder's pooled states, as a class that transformers saves and loads.

`PooledClassifier.save_pretrained` puts a copy of this file beside the weights, so that plain transformers loads a saved
student with ``AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)``. So this file
imports nothing of this package.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

#: Field of the transformers config with the pooling: mean, cls or last.
POOLING = "pooled_by"


class PooledClassifier(PreTrainedModel):  # type: ignore[misc]
    """An encoder without a head, the pooling of its last states, and one linear layer.

    The config is the encoder's, with the pooling as ``pooled_by``. Transformers' own classifiers read the first token
    alone, which a short student of a teacher of pooled states learns worse from.
    """

    base_model_prefix = "body"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the encoder itself refuses one that it lacks

    def __init__(self, config: Any):
        super().__init__(config)
        self.body = AutoModel.from_config(config, attn_implementation=None)
        if isinstance(getattr(self.body, "pooler", None), nn.Module):
            self.body.pooler = None  # its output is not used, and weights without a gradient need care
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, *, attention_mask: Tensor | None = None, output_hidden_states: bool = False, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Return ``logits`` ``[B, V]`` and, where requested, ``hidden_states``.

        Args:
            attention_mask: ``[B, L]``, 1 on real tokens; None = all are real.
            output_hidden_states: return the states of all layers.
            inputs: as the encoder's.
        """
        masked = {} if attention_mask is None else {"attention_mask": attention_mask}
        found = self.body(**inputs, **masked, output_hidden_states=output_hidden_states, return_dict=True)
        pooled_BD = _pooled(found.last_hidden_state, attention_mask, getattr(self.config, POOLING))
        return SequenceClassifierOutput(logits=self.classifier(pooled_BD), hidden_states=found.hidden_states)


def _pooled(states_BLD: Tensor, mask_BL: Tensor | None, how: str) -> Tensor:
    """Pool states to ``[B, D]``: the mean over real tokens, the first, or the last real one."""
    if how == "cls":
        return states_BLD[:, 0]
    if mask_BL is None:
        mask_BL = torch.ones(states_BLD.shape[:2], dtype=torch.bool, device=states_BLD.device)
    if how == "mean":
        weight_BL1 = mask_BL.unsqueeze(-1).to(states_BLD.dtype)
        return (states_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)
    assert how == "last", how
    positions = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    last_B = torch.where(mask_BL.bool(), positions, -1).amax(1)
    return states_BLD[torch.arange(len(states_BLD), device=last_B.device), last_B]


PooledClassifier.register_for_auto_class("AutoModelForSequenceClassification")
