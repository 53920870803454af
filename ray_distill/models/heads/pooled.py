"""Recognise, make and read a `PooledClassifier`.

It is the student of an encoder whose head was fitted on pooled states.

The class itself is imported where it is used: its import loads transformers, which takes seconds.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_distill.config import TeacherConfig
from ray_distill.models.heads.fit_head import read_encoder

#: Field of the transformers config with the pooling, as in `pooled_classifier`, which imports nothing of this package.
POOLING = "pooled_by"
#: Tasks of this class of transformers may have such students.
POOLED_TASKS = "AutoModelForSequenceClassification"


def is_pooled(model_config: Any) -> bool:
    """Return whether a transformers config is that of a `PooledClassifier`."""
    return getattr(model_config, POOLING, None) is not None


def pooled_class() -> Any:
    """Return the class."""
    from ray_distill.models.heads.pooled_classifier import PooledClassifier

    return PooledClassifier


def new_pooled(model_config: Any) -> nn.Module:
    """Initialise a new model from torch's random generator; float32, on the CPU."""
    module: nn.Module = pooled_class()._from_config(model_config, dtype=torch.float32)
    return module


def read_pooled(folder: Path, model_config: Any, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Read a saved one; return it and what transformers found missing or of another size.

    Args:
        folder: local checkpoint.
        model_config: its transformers config, which is changed in place.
        options: of ``from_pretrained``; names of classes and ``problem_type`` change the config.
    """
    for field in ("id2label", "label2id", "problem_type"):
        if field in options:
            setattr(model_config, field, options.pop(field))
    module, info = pooled_class().from_pretrained(folder, config=model_config, output_loading_info=True, **options)
    return module, info


def around_encoder(folder: Path, own: TeacherConfig, fields: dict[str, Any]) -> nn.Module:
    """Read an encoder without a head, and put a new head on its pooled states.

    It is float32, on the CPU.

    Args:
        folder: local checkpoint.
        own: its settings.
        fields: of the config: the pooling, and names of classes.

    Raises:
        ModelError: it cannot be loaded, or lacks weights.
    """
    encoder: Any = read_encoder(folder, own)
    for field, value in fields.items():
        setattr(encoder.config, field, value)
    module: Any = new_pooled(encoder.config)
    state = encoder.state_dict()
    module.body.load_state_dict({name: state[name] for name in module.body.state_dict()})
    result: nn.Module = module
    return result
