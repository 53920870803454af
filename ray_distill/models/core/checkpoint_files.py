"""Fetch checkpoint folders, validate their files and compute their digest."""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ray_distill.errors import ChangedModel, ConfigError, DamagedFile, ModelError, StorageError
from ray_distill.fingerprint import canonical_json
from ray_distill.storage import files
from ray_distill.storage.scratch import Scratch
from ray_distill.storage.sealed import read_sealed

#: A saved model's description of itself, beside the transformers files.
METADATA_FILE = "ray_distill.json"
#: A language model's defaults for writing; its distributions do not depend on it.
GENERATION_FILE = "generation_config.json"
#: Field of the metadata with the digests of `beside`.
BESIDE = "beside"
_WAY_OUT = "restore the files of the folder from a copy, or save or train the model again"
_WEIGHTS = ("*.safetensors",)
_GGUF = ("*.gguf",)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
#: Files that decide a model's answers, apart from the weights.
_SMALL = (
    "config.json",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "*.py",
)


@contextmanager
def open_checkpoint(url: str, *, weights: bool = True) -> Iterator[Path]:
    """Yield a local folder with the files; a remote one is downloaded, then removed.

    Raises:
        ModelError: there is no such folder, or nothing in it.
        StorageError: the file system refused.
    """
    if files.is_local(url):
        folder = Path(files.absolute(url))
        if not folder.is_dir():
            raise ModelError(
                f"there is no checkpoint folder {url}: give a folder or URL with config.json and "
                "safetensors, or module:function; nothing is fetched from a model hub"
            )
        yield folder
        return
    with Scratch("model") as scratch:
        _download(url, scratch.path, weights=weights)
        yield scratch.path


def check_files(folder: Path, url: str) -> None:
    """Refuse what is neither a safetensors checkpoint nor one GGUF file.

    Raises:
        ModelError: a file is missing, or the weights are pickles (with how to convert them).
    """
    names = _names(folder)
    if _matching(names, _WEIGHTS):
        return
    if _matching(names, _GGUF):
        _check_gguf(_matching(names, _GGUF), url)
        return
    pickles = _matching(names, _PICKLES)
    if pickles:
        raise ModelError(
            f"{url} has its weights as {pickles[0]}, which can run code when loaded, and no safetensors: convert it "
            "on a machine that trusts it (AutoModel.from_pretrained(folder).save_pretrained(folder))"
        )
    raise ModelError(
        f"{url} is not a checkpoint: it has no *.safetensors and no *.gguf, only {', '.join(names[:8]) or 'nothing'}; "
        "give the folder of one, or restore its files"
    )


def gguf_file(folder: Path) -> str | None:
    """Return the name of a checkpoint's GGUF file; None for safetensors.

    Safetensors count where both are there.
    """
    names = _names(folder)
    found = _matching(names, _GGUF)
    return found[0] if found and not _matching(names, _WEIGHTS) else None


def checkpoint_digest(folder: Path) -> str:
    """Return the digest ``sha256:…`` of the files that decide answers, as in ``revision``.

    The model card and free metadata are left out: they decide no answer. The factory and the decision of a saved model
    count.
    """
    total = hashlib.sha256()
    counted = (*_SMALL, *(_GGUF if gguf_file(folder) else _WEIGHTS))
    for path in sorted(folder.iterdir()):
        if path.is_file() and _matching([path.name], counted):
            total.update(f"{path.name}\0{_file_digest(path)}\n".encode())
    saved = read_metadata(folder)
    for name in ("factory", "decision"):
        if saved.get(name):
            total.update(canonical_json(saved[name]))
    return "sha256:" + total.hexdigest()


def check_revision(found: str, expected: str | None, url: str) -> None:
    """Compare a digest with the revision the config pins.

    Raises:
        ConfigError: the revision is not a sha256.
        ChangedModel: the files are others than those that were pinned.
    """
    if expected is None or expected == found:
        return
    if not expected.startswith("sha256:") or len(expected) != len(found):
        raise ConfigError(f"revision {expected!r} of {url} is not sha256: and 64 hexadecimal digits; it is {found}")
    raise ChangedModel(
        f"the files of {url} have changed: revision {expected} is pinned, found {found}; "
        "restore them, or pin what is there",
        found=found,
    )


def check_beside(folder: Path, saved: Mapping[str, Any], url: str, *, digest: str) -> None:
    """Compare the files of a folder with the metadata that was saved with them.

    Other checkpoints have none, and pass. ``digest`` is the folder's `checkpoint_digest`, which takes time.

    Raises:
        ChangedModel: the metadata, or the settings of written texts, belong to another model.
    """
    stated = saved.get(BESIDE)
    if stated is None or stated == beside(folder, digest):
        return
    found = f"{METADATA_FILE} was saved with other files than those beside it ({GENERATION_FILE} counts)"
    raise ChangedModel(f"{url} has changed: {found}; {_WAY_OUT}", found=found)


def is_saved(url: str) -> bool:
    """Return whether a folder or URL has a model that `save_model` wrote.

    The metadata is written last, and a function's model has no ``config.json``.
    """
    return files.exists(files.join(url, METADATA_FILE))


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata that `save_model` wrote; empty for a checkpoint from elsewhere.

    Raises:
        ChangedModel: the file is not a JSON object, or was changed.
    """
    path = folder / METADATA_FILE
    return read_saved(str(folder)) if path.is_file() else {}


def read_saved(url: str) -> dict[str, Any]:
    """Read the metadata of a folder or URL that `save_model` wrote.

    Raises:
        ChangedModel: there is none, it is not a JSON object, or it was changed.
        StorageError: it cannot be read.
    """
    try:
        return read_sealed(files.join(url, METADATA_FILE), _WAY_OUT)
    except DamagedFile as error:
        raise ChangedModel(str(error), found=f"its {METADATA_FILE} is damaged") from error
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            found = f"it has no {METADATA_FILE}"
            raise ChangedModel(f"{url}: {found}, which is saved with a model: {_WAY_OUT}", found=found) from error
        raise


def read_facts(url: str) -> dict[str, Any]:
    """Read the free metadata of a folder or URL that `save_model` wrote: how the model was made.

    Raises:
        ChangedModel: as `read_saved`, or the file is not what was saved with the model.
    """
    saved = read_saved(url)
    if BESIDE not in saved or "metadata" not in saved:
        found = f"its {METADATA_FILE} is not what was saved with it"
        raise ChangedModel(f"{url} has changed: {found}; {_WAY_OUT}", found=found)
    facts: dict[str, Any] = saved["metadata"]
    return facts


def beside(folder: Path, digest: str) -> dict[str, str]:
    """Return digests of what decides answers (``digest``) or texts, for the metadata beside it."""
    generation = folder / GENERATION_FILE
    texts = {GENERATION_FILE: _file_digest(generation)} if generation.is_file() else {}
    return {"checkpoint": digest, **texts}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and load reports; the loader has its own checks."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_gguf(found: list[str], url: str) -> None:
    """Refuse several GGUF files, and packages that are not there to read one."""
    if len(found) > 1:
        raise ModelError(
            f"{url} has {len(found)} GGUF files ({', '.join(found[:4])}) and no safetensors: keep the "
            "one that is meant, in a folder of its own (parts of one model must be merged first)"
        )
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{url} is a GGUF checkpoint ({found[0]}), and reading it needs the optional packages gguf "
            f"and accelerate: install {' and '.join(missing)} (pip install {' '.join(missing)}) on every "
            "machine that loads it"
        )


def _download(url: str, folder: Path, *, weights: bool) -> None:
    """Fetch a checkpoint's files; a GGUF always, as it has config and tokenizer too."""
    names = {info.name: info for info in files.list_files(url)}
    top_level = [name for name in names if "/" not in name]
    if not top_level:
        raise ModelError(f"there is no checkpoint at {url}: the folder is missing or empty")
    heavy = _WEIGHTS if weights else ()
    if not _matching(top_level, _WEIGHTS):
        heavy = _GGUF
    for name in _matching(top_level, (*_SMALL, METADATA_FILE, GENERATION_FILE, *heavy)):
        (folder / name).write_bytes(files.read_bytes(names[name].url))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
