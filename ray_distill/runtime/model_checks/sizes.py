"""Limit what a check loads: small models are run, and the heads of larger ones are opened."""

from pathlib import Path

from ray_distill.storage import files

#: Bytes of a checkpoint's weights that are read; a larger teacher or student is checked by its config and tokenizer.
LOADED_BYTES = 128 << 20
#: Parameters of a student that takes a training step, with gradients and moments four times as many numbers.
TRAINED_PARAMETERS = 32_000_000
#: Elements of made-up logits.
LOGITS = 1 << 22


def is_small(model: str) -> bool:
    """Return whether a checkpoint is a local folder whose weights are few enough to be read."""
    if not files.is_local(model):
        return False
    folder = Path(files.absolute(model))
    found = [path for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern)]
    return sum(path.stat().st_size for path in found) <= LOADED_BYTES
