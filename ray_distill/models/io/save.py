"""Save a model as a standard transformers directory that ``AutoModelFor…`` loads."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import transformers
from safetensors.torch import save_file
from torch import Tensor

from ray_distill.errors import ModelError
from ray_distill.models.core.checkpoint_files import BESIDE, METADATA_FILE, beside, checkpoint_digest, quiet
from ray_distill.models.core.model import Model
from ray_distill.models.core.module_function import check_annotated
from ray_distill.models.core.skipped_imports import without
from ray_distill.models.io.lora import has_lora, merged
from ray_distill.models.text.lm_processor import LanguageProcessor
from ray_distill.models.text.seq2seq_processor import PairProcessor
from ray_distill.storage.sealed import sealed

SAVED_FORMAT = 1


@runtime_checkable
class _Saves(Protocol):
    def save(self, folder: Path) -> None: ...


def save_model(
    model: Model,
    folder: Path,
    *,
    card: str,
    metadata: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | None = None,
) -> str:
    """Write weights, config, processor, ``README.md`` and ``ray_distill.json`` to a folder.

    A model of transformers' own classes loads with plain ``AutoModelFor…``; one that a function built is loaded
    by `load_model`, which calls the function whose name and arguments stand in ``ray_distill.json``. Adapters are
    merged into the weights.

    Args:
        model: what to save.
        folder: made if it is missing.
        card: the model card, Markdown.
        metadata: plain JSON to keep beside the model.
        state_dict: full weights to save instead of the module's own, where those are sharded.

    Returns:
        The checkpoint's digest, ``sha256:…``: fit for a ``revision``.

    Raises:
        ModelError: the model cannot be saved so that it loads again, or the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if has_lora(model.module):
        model, state_dict = replace(model, module=merged(model.module, state_dict)), None
    standard = _is_standard(model)
    if not standard and model.factory is None:
        raise ModelError(
            f"{model.url} ({type(model.module).__name__}) is neither a transformers model nor made by a "
            "module:function, so it could not be loaded again"
        )
    saved: dict[str, Any] = {
        "format": SAVED_FORMAT,
        "task": model.task,
        "classes": list(model.classes),
        "describe": dict(model.describe),
        "decision": dict(model.decision),
        "metadata": dict(metadata),
        **_language(model),
    }
    if not standard:
        assert model.factory is not None
        check_annotated(model.factory.name)
        saved["factory"] = model.factory.to_dict()
    try:
        _write_weights(model, folder, state_dict, standard=standard)
        if isinstance(model.processor, _Saves):
            model.processor.save(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_metadata(folder, saved)  # first without the digests, of which it decides a part
        digest = checkpoint_digest(folder)
        _write_metadata(folder, {**saved, BESIDE: beside(folder, digest)})
    except OSError as error:
        raise ModelError(f"cannot save a model to {folder}: {error}") from error
    return digest


def _write_metadata(folder: Path, saved: Mapping[str, Any]) -> None:
    text = json.dumps(sealed(saved), indent=2, allow_nan=False)
    (folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")


def _language(model: Model) -> dict[str, Any]:
    """Return the language settings of a model, which no file of transformers records."""
    if not isinstance(model.processor, LanguageProcessor | PairProcessor):
        return {}
    return {
        "vocabulary": model.vocabulary,
        "language": model.processor.settings.model_dump(mode="json"),
        "max_length": model.processor.max_length,
    }


def _is_standard(model: Model) -> bool:
    """Return whether the checkpoint alone rebuilds the module, by class or code in the folder."""
    if not isinstance(model.module, transformers.PreTrainedModel):
        return False
    return model.factory is None or type(model.module).__module__.startswith("transformers.")


def _once(module: Any, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without second names of tied ones, which transformers ties again."""
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    return {name: value for name, value in state_dict.items() if name not in tied}


def _write_weights(model: Model, folder: Path, state_dict: Mapping[str, Tensor] | None, *, standard: bool) -> None:
    if standard:
        module: Any = model.module
        if model.classes:
            module.config.id2label = dict(enumerate(model.classes))
            module.config.label2id = {name: index for index, name in enumerate(model.classes)}
        # accelerate imports DeepSpeed, to recognise its engines; here are none, and the import takes two CPU seconds.
        with quiet(), without("deepspeed"):
            module.save_pretrained(folder, state_dict=None if state_dict is None else _once(module, state_dict))
        return
    state = model.module.state_dict() if state_dict is None else state_dict
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in state.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
