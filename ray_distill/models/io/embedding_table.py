"""Read the token embeddings of a teacher, and of its weights nothing else."""

from pathlib import Path
from typing import Any

import torch
import transformers  # its classes by full name: each is imported when it is used, which takes seconds
from safetensors import SafetensorError, safe_open

from ray_distill.config import TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.models.core.checkpoint_files import check_files, gguf_file, open_checkpoint, quiet, read_metadata
from ray_distill.models.core.module_function import is_factory
from ray_distill.models.io.load import read_config
from ray_distill.models.text.neighbours import Vectors, WordNeighbours, whole_words
from ray_distill.models.text.processors import read_tokenizer
from ray_distill.storage import files


def check_embeddings(teacher: TeacherConfig) -> None:
    """Refuse a teacher whose token embeddings `read_neighbours` could not read.

    No weights are read. Those of a checkpoint that is not local are not downloaded, so that it may turn out later that
    the table is not among them, as it may that no token is a whole word.

    Raises:
        ModelError: as `read_neighbours`.
        StorageError: the file system refused.
    """
    _refuse_function(teacher)
    with open_checkpoint(teacher.model, weights=False) as folder:
        if files.is_local(teacher.model):
            check_files(folder, teacher.model)
        _read_tokenizer(folder, teacher)
        name = _name_in_model(folder, teacher)
        if files.is_local(teacher.model):
            _find(folder, name, teacher.model)


def read_neighbours(teacher: TeacherConfig) -> WordNeighbours:
    """Return the neighbours of words in a checkpoint's table of input embeddings.

    In memory are the table and, twice, the vectors of its whole words, float32. A checkpoint that is not local is
    downloaded whole.

    Raises:
        ModelError: it is not a safetensors checkpoint of transformers with a tokenizer of words and one such table.
        StorageError: the file system refused.
    """
    _refuse_function(teacher)
    with open_checkpoint(teacher.model) as folder:
        check_files(folder, teacher.model)
        words = whole_words(_read_tokenizer(folder, teacher))
        path, key = _find(folder, _name_in_model(folder, teacher), teacher.model)
        with safe_open(path, framework="pt") as weights:
            table_VD = weights.get_tensor(key)
        ids = [index for index in words if index < len(table_VD)]
        if len(ids) < 2:
            raise ModelError(f"the tokenizer of {teacher.model} has no tokens that are whole words")
        vectors_WD: Vectors = table_VD[ids].float().numpy()
    return WordNeighbours([words[index] for index in ids], vectors_WD)


def _refuse_function(teacher: TeacherConfig) -> None:
    if is_factory(teacher.model):
        raise ModelError(f"{teacher.model} is a function, whose token embeddings have no known place")


def _read_tokenizer(folder: Path, teacher: TeacherConfig) -> Any:
    """Read the tokenizer of a checkpoint of a kind that has embeddings at a known place."""
    if gguf_file(folder) is not None:
        raise ModelError(f"{teacher.model} is a GGUF file, whose token embeddings cannot be read alone")
    if read_metadata(folder).get("factory"):
        raise ModelError(f"{teacher.model} was saved from a function, so that its token embeddings have no known place")
    return read_tokenizer(folder, teacher)


def _name_in_model(folder: Path, teacher: TeacherConfig) -> str:
    """Return the name of the table in the bare model, which is built without memory for weights."""
    config = read_config(folder, teacher)
    try:
        with quiet(), torch.device("meta"):
            model = transformers.AutoModel.from_config(config, trust_remote_code=teacher.trust_remote_code)
        table = model.get_input_embeddings().weight
        found: str = next(name for name, own in model.named_parameters(remove_duplicate=False) if own is table)
    except Exception as error:
        raise ModelError(f"{teacher.model} has no table of token embeddings: {error!r}") from error
    return found


def _find(folder: Path, name: str, url: str) -> tuple[Path, str]:
    """Return the file and the key of the table in a checkpoint, where names may have a prefix."""
    found, shape = list[tuple[Path, str]](), tuple[int, ...]()
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as weights:
                keys = [key for key in weights.keys() if f".{key}".endswith(f".{name}")]  # noqa: SIM118  (no mapping)
                found += [(path, key) for key in keys]
                shape = next((tuple(weights.get_slice(key).get_shape()) for key in keys), shape)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights of {url} cannot be read: {error}") from error
    if len(found) != 1 or len(shape) != 2:
        keys = [key for _, key in found]
        raise ModelError(f"{url} has no single table of token embeddings {name}; found {', '.join(keys) or 'none'}")
    return found[0]
