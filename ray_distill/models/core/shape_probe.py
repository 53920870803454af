"""Run one made-up example through a model, for the shapes of its hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ray_distill.errors import ModelError
from ray_distill.models.core.forward import as_tokens, place_batch, states_of
from ray_distill.tasks.inputs.modality import Inputs, Processor


@dataclass(frozen=True, kw_only=True)
class States:
    """The hidden states a model shows."""

    widths: tuple[int, ...]
    """Width D of each, 0 = the embeddings."""
    spatial: bool
    """True where they are feature maps, which have no first or last token to pool."""


def probe(module: nn.Module, processor: Processor, *, shape: Sequence[int | None], inputs: Inputs, url: str) -> States:
    """Run the module once on the features of one example; its mode is left as it is.

    Args:
        module: the model's.
        processor: gives its features.
        shape: of one example's logits; None stands for any length.
        inputs: the task's.
        url: names the model in messages.

    Raises:
        ModelError: it does not run on its processor's features, or its logits have another shape.
    """
    batch = inputs.collate(inputs.example(processor), np.zeros(1, np.int64))
    training = module.training
    try:
        with torch.inference_mode():
            found = module.eval()(**place_batch(module, batch), output_hidden_states=True)
            logits, states = found.logits, states_of(found)
    except Exception as error:
        raise ModelError(
            f"{url} does not run on its own processor's features ({', '.join(batch)}): {type(error).__name__}: {error}"
        ) from error
    finally:
        module.train(training)
    found_shape = list(logits.shape)
    if len(found_shape) != len(shape) or any(
        size not in (None, other) for size, other in zip(shape, found_shape, strict=True)
    ):
        expected = ", ".join("L" if size is None else str(size) for size in shape)
        raise ModelError(
            f"{url} answers one example with logits of shape {found_shape}: expected [{expected}], whose last size is "
            "the number of its classes"
        )
    return States(
        widths=tuple(as_tokens(state).shape[-1] for state in states), spatial=any(state.ndim == 4 for state in states)
    )
