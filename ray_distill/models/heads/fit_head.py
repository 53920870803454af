"""Fit a linear classification head on an encoder, once, as part of the teacher."""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from ray_distill.config import TeacherConfig
from ray_distill.errors import AlreadyExists, ConfigError, ModelError, StorageError
from ray_distill.fingerprint import canonical_json, fingerprint, fingerprint_bytes
from ray_distill.models.core.checkpoint_files import (
    check_files,
    check_revision,
    checkpoint_digest,
    open_checkpoint,
    quiet,
)
from ray_distill.models.core.fingerprint import place
from ray_distill.models.core.forward import as_tokens, place_batch, pool_hidden
from ray_distill.models.heads.logistic import LinearHead
from ray_distill.storage import files
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.facets import HeadFit

HEAD_FORMAT = 1
_HEAD, _ROWS = "head.safetensors", "fitted_rows.parquet"
#: Fact with the digest of the weights.
_WEIGHTS = "weights"
_AGAIN = "restore its folder from a copy, or delete it and label into a new store (labels.store), which fits it again"


class PrepareFit(Protocol):
    """Check labels, and return the fit on them; see `ModelFacet.head_fit`."""

    def __call__(self, truth: npt.NDArray[Any], classes: Sequence[str], *, seed: int) -> HeadFit:
        """Return a function from embeddings ``[R, D]`` to a head."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A fitted head and what it was fitted for."""

    classes: tuple[str, ...]
    pool: str
    normalize: bool
    encoder: str
    """Digest of the encoder's checkpoint."""
    row_ids: str
    """Digest of the ids of the rows it was fitted on."""
    weight_VD: Tensor
    bias_V: Tensor
    facts: dict[str, Any]
    """Everything that decided the fit, and the digest of the weights."""
    fingerprint: str


class EncoderWithHead(nn.Module):
    """An encoder with pooling and a linear head, with the interface of a classifier."""

    def __init__(self, encoder: nn.Module, head: Head):
        super().__init__()
        self.encoder = encoder
        self.pool, self.normalize = head.pool, head.normalize
        self.classifier = nn.Linear(head.weight_VD.shape[1], head.weight_VD.shape[0])
        self.classifier.load_state_dict({"weight": head.weight_VD, "bias": head.bias_V})

    def forward(self, *, output_hidden_states: bool = False, **features: Tensor) -> SimpleNamespace:
        """Return an object with ``logits`` ``[B, V]`` and ``hidden_states``."""
        found = self.encoder(**features, output_hidden_states=output_hidden_states)
        pooled_BD = embed(found, features.get("attention_mask"), self.pool, normalize=self.normalize)
        return SimpleNamespace(logits=self.classifier(pooled_BD), hidden_states=found.hidden_states)


def embed(found: Any, mask_BL: Tensor | None, pool: str, *, normalize: bool) -> Tensor:
    """Pool an encoder's output to ``[B, D]``, of length 1 with ``normalize``."""
    mask_BL = None if mask_BL is None else mask_BL.bool()
    pooled_BD = pool_hidden(as_tokens(found.last_hidden_state), mask_BL, pool)
    return nn.functional.normalize(pooled_BD, dim=-1) if normalize else pooled_BD


def fit_head(
    spec: TeacherConfig,
    encoded: Encoded,
    labels: npt.NDArray[np.integer[Any]],
    *,
    classes: Sequence[str],
    prepare: PrepareFit,
    collate: Callable[[Encoded, npt.NDArray[np.int64]], Batch],
    seed: int,
    url: str,
    batch: int = 64,
    progress: Callable[[str, int, int], None] = lambda activity, done, total: None,
) -> str:
    """Fit a linear head on an encoder's pooled embeddings; return its folder.

    The folder is ``<url>/<fingerprint of encoder, rows, labels, settings and seed>``. A head that is there already
    is kept, so that a rerun, on another machine too, gives the very same teacher. Its files are
    ``head.safetensors`` and ``fitted_rows.parquet`` (``row_id`` of the rows used, which must not be distilled).

    Args:
        spec: the encoder; ``spec.head`` has the pooling and the most rows to use, the first by row id.
        encoded: labelled rows as the encoder's own processor (`load_processor`) encodes them.
        labels: a line a row of ``encoded``, such as class indices ``[R]``.
        classes: class names.
        prepare: the family's `ModelFacet.head_fit`.
        collate: the task's ``collate``.
        seed: decides the folds in which the regularisation is chosen.
        url: folder or URL to write under.
        batch: examples a forward pass.
        progress: is called with an activity, the steps done and all its steps.

    Raises:
        ModelError: the labels do not suffice, or the encoder cannot be loaded.
    """
    if spec.head is None:
        raise ConfigError(f"the teacher {spec.model} has no `head` section, so there is no head to fit")
    index = _chosen(encoded, spec.head.max_rows)
    chosen = np.asarray(labels, dtype=np.int64)[index]
    fit = prepare(chosen, classes, seed=seed)
    row_ids = encoded.row_ids.take(pa.array(index))
    with open_checkpoint(spec.model) as folder:
        check_files(folder, spec.model)
        digest = checkpoint_digest(folder)
        check_revision(digest, spec.revision, spec.model)
        facts = _facts(spec, digest, row_ids, labels=chosen, classes=classes, seed=seed)
        target = files.join(url, fingerprint(facts))
        if files.exists(files.join(target, _HEAD)):
            _require_own(target, facts)
        else:
            encoder = place(read_encoder(folder, spec), dtype=spec.dtype, device=spec.device).eval()
            vectors = _embeddings(encoder, encoded, index, spec=spec, collate=collate, batch=batch, progress=progress)
            progress("fitting the head", 0, 1)
            _write(target, facts, fit(vectors), row_ids)
    return target


def fitted_rows(head_url: str) -> pa.Array:
    """Return the row ids that the head at ``head_url`` was fitted on.

    Raises:
        ModelError: head or rows are absent or damaged, or they do not belong together.
        StorageError: they cannot be read.
    """
    try:
        table = pq.read_table(io.BytesIO(_bytes(head_url, _ROWS)), columns=["row_id"])
        found: pa.Array = table.column("row_id").combine_chunks()
        same = row_ids_digest(found) == read_head(head_url).row_ids
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise ModelError(f"the rows of the head at {head_url} cannot be read: {error}; {_AGAIN}") from error
    if not same:
        raise ModelError(
            f"{files.join(head_url, _ROWS)} does not name the rows that the head was fitted on, which must not be "
            f"distilled: {_AGAIN}"
        )
    return found


def fitted_rows_url(head_url: str) -> str:
    """Return the URL of the Parquet file of `fitted_rows`, after it was read and verified."""
    fitted_rows(head_url)
    return files.join(head_url, _ROWS)


def row_ids_digest(row_ids: pa.Array) -> str:
    """Digest row ids in their order."""
    return fingerprint_bytes(b"".join(row_ids.to_pylist()))


def read_head(head_url: str) -> Head:
    """Read what `fit_head` wrote.

    Raises:
        ModelError: the head is absent, damaged, or of another version.
        StorageError: it cannot be read.
    """
    data = _bytes(head_url, _HEAD)
    try:
        state = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["facts"])
        if facts["format"] == HEAD_FORMAT:
            return _head(state, facts, fingerprint_bytes(data))
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"the head at {head_url} cannot be read: {error!r}; {_AGAIN}") from error
    raise ModelError(
        f"the head at {head_url} has format {facts['format']!r}: this version reads {HEAD_FORMAT}; {_AGAIN}"
    )


def _bytes(head_url: str, name: str) -> bytes:
    try:
        return files.read_bytes(files.join(head_url, name))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ModelError(f"the head at {head_url} has no {name}: {_AGAIN}") from error
        raise


def _head(state: dict[str, Tensor], facts: dict[str, Any], mark: str) -> Head:
    return Head(
        classes=tuple(facts["classes"]),
        pool=facts["pool"],
        normalize=facts["normalize"],
        encoder=facts["encoder"],
        row_ids=facts["row_ids"],
        weight_VD=state["weight"],
        bias_V=state["bias"],
        facts=facts,
        fingerprint=mark,
    )


def _require_own(head_url: str, facts: dict[str, Any]) -> None:
    """Refuse a head that was fitted for other facts, or whose weights were changed.

    Raises:
        ModelError: as `read_head`.
    """
    head = read_head(head_url)
    own = {**facts, _WEIGHTS: weights_digest(head.weight_VD, head.bias_V)}
    if {name: head.facts.get(name) for name in own} != own:
        raise ModelError(f"{files.join(head_url, _HEAD)} is not the head that was fitted there: {_AGAIN}")


def weights_digest(weight_VD: Tensor, bias_V: Tensor) -> str:
    """Digest the weights of a head."""
    parts = (tensor.detach().cpu().contiguous().numpy() for tensor in (weight_VD, bias_V))
    return fingerprint_bytes(b"".join(f"{part.dtype}{part.shape}".encode() + part.tobytes() for part in parts))


def attach_head(folder: Path, spec: TeacherConfig, *, digest: str, head_url: str | None) -> tuple[nn.Module, Head]:
    """Read the encoder in ``folder`` and the head at ``head_url``; float32, on the CPU.

    Raises:
        ModelError: there is no head yet, or it was fitted for another encoder or pooling.
    """
    if head_url is None:
        raise ModelError(
            f"{spec.model} is configured with a head, which must be fitted first: "
            "label through `ray-distill label` or `run`, or call fit_head and pass its folder"
        )
    head = read_head(head_url)
    found = {"encoder": head.encoder, "pool": head.pool, "normalize": head.normalize}
    assert spec.head is not None
    expected = {"encoder": digest, "pool": spec.head.pool, "normalize": spec.head.normalize}
    if found != expected:
        raise ModelError(f"the head at {head_url} was fitted for {found}, the teacher is {expected}: {_AGAIN}")
    return EncoderWithHead(read_encoder(folder, spec), head), head


def read_encoder(folder: Path, spec: TeacherConfig) -> nn.Module:
    """Read a checkpoint without a head; float32, on the CPU.

    Raises:
        ModelError: it cannot be loaded, or lacks weights.
    """
    try:
        with quiet():
            module, info = transformers.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                trust_remote_code=spec.trust_remote_code,
            )
    except Exception as error:
        raise ModelError(f"cannot load the encoder {spec.model}: {error}") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(f"{spec.model} has no weights for {', '.join(missing[:4])}: it is no {type(module).__name__}")
    result: nn.Module = module
    return result


def _facts(
    spec: TeacherConfig,
    digest: str,
    row_ids: pa.Array,
    *,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return everything that decides the fit."""
    assert spec.head is not None
    return {
        "format": HEAD_FORMAT,
        "classes": list(classes),
        "pool": spec.head.pool,
        "normalize": spec.head.normalize,
        "encoder": digest,
        "dtype": spec.dtype,
        "max_length": spec.max_length,
        "rows": len(row_ids),
        "row_ids": row_ids_digest(row_ids),
        "labels": fingerprint_bytes(labels.tobytes()),
        "seed": seed,
    }


def _write(folder: str, facts: dict[str, Any], fit: LinearHead, row_ids: pa.Array) -> None:
    """Write the rows, then the head; of several writers the first wins and all use its head."""
    files.write_bytes(files.join(folder, _ROWS), _parquet(row_ids))
    facts = {**facts, **fit.facts, _WEIGHTS: weights_digest(fit.weight_VD, fit.bias_V)}
    data = safetensors.torch.save(
        {"weight": fit.weight_VD, "bias": fit.bias_V}, metadata={"facts": canonical_json(facts).decode()}
    )
    with suppress(AlreadyExists):
        files.create_exclusive(files.join(folder, _HEAD), data)


def _chosen(encoded: Encoded, limit: int) -> npt.NDArray[np.int64]:
    """Return the first rows by row id, so that the order of the input has no effect."""
    ids = encoded.row_ids.to_pylist()
    return np.array(sorted(range(len(ids)), key=ids.__getitem__)[:limit], dtype=np.int64)


def _embeddings(
    encoder: nn.Module,
    encoded: Encoded,
    index: npt.NDArray[np.int64],
    *,
    spec: TeacherConfig,
    collate: Callable[[Encoded, npt.NDArray[np.int64]], Batch],
    batch: int,
    progress: Callable[[str, int, int], None],
) -> Tensor:
    """Return pooled embeddings, float32 ``[R, D]`` on the CPU."""
    assert spec.head is not None
    found = []
    with torch.inference_mode():
        for start in range(0, len(index), batch):
            inputs = place_batch(encoder, collate(encoded, index[start : start + batch]))
            mask_BL = inputs.get("attention_mask")
            pooled = embed(encoder(**inputs), mask_BL, spec.head.pool, normalize=spec.head.normalize)
            found.append(pooled.float().cpu())
            progress("embedding rows for the head", min(start + batch, len(index)), len(index))
    return torch.cat(found)


def _parquet(row_ids: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"row_id": row_ids}), sink)
    return sink.getvalue()
