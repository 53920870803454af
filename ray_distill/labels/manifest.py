"""What every shard of a label store must agree with: the content of ``store.json``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, cast

from ray_distill.errors import CorruptStore, LabelError, StoreMismatch
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.signal import Family

#: Version of the store's layout: manifest, log records and file names.
STORE_VERSION = 1

ESTIMATORS = ("dense", "topk")
POOLS = ("token", "mean", "cls", "last")
HIDDEN_DTYPES = ("float32", "bfloat16", "float16")

#: Where a teacher lies is no part of what it says: its own fingerprint covers weights, dtype and processor.
DESCRIPTIVE = ("model", "revision", "head")


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """Teacher, signal, form and batch plan of a store; two runs may share a store if these are equal.

    ``teacher`` has at least ``fingerprint``; its ``model``, ``revision`` and ``head`` (where its fitted head lies) are
    for readers and are not compared.
    """

    task: str
    teacher: Mapping[str, Any]
    classes: tuple[str, ...]
    """Class names in the order of the teacher's class ids."""
    estimator: str = "dense"
    k: int = 0
    """Entries stored a position; 0 with ``dense``."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures with a stored tail; 1 is among them."""
    family: Family = "categorical"
    hidden_layers: tuple[int, ...] = ()
    """Non-negative layer indices as in ``hidden_states``."""
    pool: str = "mean"
    hidden_dtype: str = "bfloat16"
    codec: tuple[str, int] = ("dense", 1)
    """Name and version of the codec of the distributions."""
    unit_rows: int = 512
    """Rows of a work unit."""
    batch: int = 64
    """Rows of a teacher batch; part of the identity because batched inference is not bit-exact."""
    threads: int = 1
    """CPU threads of the teacher; part of the identity for the same reason."""
    version: int = field(default=STORE_VERSION)

    def __post_init__(self) -> None:
        wrong = [message for ok, message in _rules(self) if not ok]
        if wrong:
            raise LabelError("the label store's manifest is not usable: " + "; ".join(wrong))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that two runs must agree on to share a store."""
        return fingerprint(self.identity())

    def identity(self) -> dict[str, Any]:
        """The compared part of `to_dict`."""
        value = self.to_dict()
        value["teacher"] = {key: item for key, item in self.teacher.items() if key not in DESCRIPTIVE}
        return value

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Rebuild a manifest.

        Raises:
            LabelError: it is of a later version, or its values are not usable.
            CorruptStore: fields are missing, unknown or of the wrong kind.
        """
        version = value.get("version")
        if isinstance(version, int) and version > STORE_VERSION:
            raise LabelError(
                f"the label store has version {version}, this release reads up to {STORE_VERSION}: upgrade ray-distill")
        names = {item.name for item in fields(cls)}
        if set(value) != names or version != STORE_VERSION:
            odd = sorted(set(value) ^ names) or [f"version {version!r}"]
            raise CorruptStore(f"the label store's manifest has missing or unknown fields: {', '.join(odd)}")
        try:
            return cls(**{key: _rebuild(key, item) for key, item in value.items()})
        except (TypeError, ValueError) as error:
            raise CorruptStore(f"the label store's manifest has a value of the wrong kind: {error}") from error

    def require(self, wanted: "StoreManifest", url: str) -> None:
        """Refuse to use this store for ``wanted``.

        Raises:
            StoreMismatch: names each field that differs, with both sides.
        """
        if self.fingerprint == wanted.fingerprint:
            return
        found, asked = _flat(self.identity()), _flat(wanted.identity())
        lines = [
            f"{key}: the store has {_short(found.get(key))}, this run wants {_short(asked.get(key))}"
            for key in sorted(set(found) | set(asked)) if found.get(key) != asked.get(key)]
        raise StoreMismatch(
            f"{url} was made for something else: " + "; ".join(lines) + ". Use another store, or the old settings")


def _rules(manifest: StoreManifest) -> list[tuple[bool, str]]:
    codec, temperatures = manifest.codec, manifest.temperatures
    return [
        (isinstance(manifest.teacher, Mapping) and bool(manifest.teacher.get("fingerprint")),
         "teacher has no fingerprint"),
        (len(set(manifest.classes)) == len(manifest.classes) > 0, "classes must be distinct, and at least one"),
        (manifest.estimator in ESTIMATORS, f"estimator {manifest.estimator!r} is not one of {', '.join(ESTIMATORS)}"),
        (manifest.estimator != "topk" or 1 <= manifest.k <= len(manifest.classes),
         f"k must be between 1 and the {len(manifest.classes)} classes, found {manifest.k}"),
        (1.0 in temperatures and min(temperatures) > 0 and len(set(temperatures)) == len(temperatures),
         f"temperatures must be positive, distinct and contain 1, found {list(temperatures)}"),
        (manifest.family in ("categorical", "bernoulli"), f"family {manifest.family!r} is unknown"),
        (all(layer >= 0 for layer in manifest.hidden_layers), "hidden layers must be counted from 0"),
        (manifest.pool in POOLS, f"pool {manifest.pool!r} is not one of {', '.join(POOLS)}"),
        (manifest.hidden_dtype in HIDDEN_DTYPES, f"hidden_dtype {manifest.hidden_dtype!r} is unknown"),
        (len(codec) == 2 and isinstance(codec[0], str) and isinstance(codec[1], int),
         f"codec {codec!r} is not a name and a version"),
        (min(manifest.unit_rows, manifest.batch, manifest.threads) >= 1,
         "unit_rows, batch and threads must be at least 1"),
    ]


def _rebuild(key: str, value: Any) -> Any:
    if key == "codec":
        return cast(tuple[str, int], tuple(value))
    if key == "temperatures":
        return tuple(float(item) for item in value)
    if key in ("classes", "hidden_layers"):
        return tuple(value)
    return value


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's fields beside the others, so that a difference is named as closely as possible."""
    teacher = {f"teacher.{key}": item for key, item in value["teacher"].items()}
    return {**{key: item for key, item in value.items() if key != "teacher"}, **teacher}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
