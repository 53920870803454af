"""The content of ``store.json``: settings that every shard of a label store must agree with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, cast

from ray_distill.errors import CorruptStore, LabelError, StoreMismatch
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.distributions import Family

#: Version of the store's layout: manifest, log records and file names. Those from release 0.2 on stay readable.
STORE_VERSION = 3

ESTIMATORS = ("dense", "topk", "sampled", "hybrid")
POOLS = ("token", "mean", "cls", "last")
HIDDEN_DTYPES = ("float32", "bfloat16", "float16", "int8", "float8")

#: Computed from the data when a store is created: a later run adopts the store's own, and does not compare.
FOUND = ("range_rows", "fits")

#: A teacher's location does not change its answers: its own fingerprint covers weights, dtype and processor.
DESCRIPTIVE = ("model", "revision", "head")


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """Teacher, signal, form and batch plan of a store.

    Two runs may share a store if these are equal.

    ``teacher`` has at least ``fingerprint``; its ``model``, ``revision`` and ``head`` (where its fitted head lies) are
    for readers and are not compared.
    """

    task: str
    teacher: Mapping[str, Any]
    classes: tuple[str, ...]
    """Class names in the order of the teacher's class ids; empty where ``vocabulary`` gives their number."""
    vocabulary: int = 0
    """Number of classes that have no names of their own: the tokens of a language model."""
    estimator: str = "dense"
    k: int = 0
    """Classes stored a position with ``topk``, size of the exact head with ``hybrid``; else 0."""
    draws: int = 0
    """Draws a position with ``sampled`` and ``hybrid``; else 0."""
    exponent: float = 1.0
    """Exponent a of the proposal ``r ∝ p^a`` of the draws."""
    seed: int = 0
    """Seed of the draws, beside the row's id."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures with a stored tail; 1 is among them."""
    family: Family = "categorical"
    hidden_layers: tuple[int, ...] = ()
    """Non-negative layer indices as in ``hidden_states``."""
    pool: str = "mean"
    hidden_dtype: str = "bfloat16"
    hidden_rank: int = 0
    """Dimensions of the PCA basis that hidden states are projected on, at most; 0 = not projected."""
    hidden_variance: float = 0.0
    """Least share of the variance that the basis keeps, where no rank is configured; 0 = not projected."""
    codec: tuple[str, int] = ("dense", 2)
    """Name and version of the codec of the distributions."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the codec."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Arrays that were fitted before the first unit (id order, PCA bases), by name: digests of files in ``fits/``."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Measured cost of the stored form on a slice of the calibration split, e.g. nats added at each
    temperature, bytes a position, variance kept a layer; for readers, not compared."""
    unit_rows: int = 512
    """Most rows of a work unit."""
    unit_bytes: int = 0
    """Most bytes of a work unit, on average; 0 = rows alone decide."""
    range_rows: int = 0
    """Rows of a work unit that were chosen by the measured bytes a row; 0 = ``unit_rows``."""
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
        """Fingerprint of everything that decides the bytes of a shard."""
        return fingerprint(self.identity())

    @property
    def rows_a_unit(self) -> int:
        """Rows of the fixed ranges into which a snapshot's shards fall."""
        return self.range_rows or self.unit_rows

    @property
    def class_count(self) -> int:
        """Size of the full class set, V."""
        return len(self.classes) or self.vocabulary

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the bytes of a shard.

        These are `to_dict` without the fields that only describe.
        """
        value = self.to_dict()
        value["teacher"] = {key: item for key, item in self.teacher.items() if key not in DESCRIPTIVE}
        value.pop("measured", None)
        return value

    def adopt(self, store: "StoreManifest") -> "StoreManifest":
        """Return these settings with what an existing store has found for itself."""
        return replace(self, **{name: getattr(store, name) for name in (*FOUND, "measured")})

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values."""
        return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Rebuild a manifest.

        Raises:
            LabelError: it is of another version, or its values are not usable.
            CorruptStore: fields are missing, unknown or of the wrong kind.
        """
        version = value.get("version")
        if isinstance(version, int) and version != STORE_VERSION:
            remedy = (
                "upgrade ray-distill" if version > STORE_VERSION else "it is older than 0.2: label into a new store"
            )
            raise LabelError(f"the label store has version {version}, this release reads {STORE_VERSION}: {remedy}")
        names = {item.name for item in fields(cls)}
        if set(value) != names or not isinstance(version, int):
            odd = sorted(set(value) ^ names) or [f"version {version!r}"]
            raise CorruptStore(f"the label store's manifest has missing or unknown fields: {', '.join(odd)}")
        try:
            return cls(**{key: _rebuild(key, item) for key, item in value.items()})
        except (TypeError, ValueError) as error:
            raise CorruptStore(f"the label store's manifest has a value of the wrong kind: {error}") from error

    def require(self, requested: "StoreManifest", url: str) -> None:
        """Refuse to use this store for the manifest ``requested``.

        Settings that stores find for themselves (`FOUND`) may differ.

        Raises:
            StoreMismatch: names each field that differs, with both sides.
        """
        requested = requested.adopt(self)
        if self.fingerprint == requested.fingerprint:
            return
        found, expected = _flat(self.identity()), _flat(requested.identity())
        lines = [
            f"{key}: the store has {_short(found.get(key))}, this run requests {_short(expected.get(key))}"
            for key in sorted(set(found) | set(expected))
            if found.get(key) != expected.get(key)
        ]
        raise StoreMismatch(
            f"{url} was made for something else: " + "; ".join(lines) + ". Use another store, or the old settings"
        )


def _rules(manifest: StoreManifest) -> list[tuple[bool, str]]:
    codec, temperatures = manifest.codec, manifest.temperatures
    return [
        (
            isinstance(manifest.teacher, Mapping) and bool(manifest.teacher.get("fingerprint")),
            "teacher has no fingerprint",
        ),
        (len(set(manifest.classes)) == len(manifest.classes), "classes must be distinct"),
        (
            (len(manifest.classes) > 0) != (manifest.vocabulary > 0) and manifest.vocabulary < 2**31,
            "either classes or a vocabulary of less than 2^31 is needed, not both",
        ),
        (manifest.estimator in ESTIMATORS, f"estimator {manifest.estimator!r} is not one of {', '.join(ESTIMATORS)}"),
        (
            manifest.estimator not in ("topk", "hybrid") or 1 <= manifest.k <= manifest.class_count,
            f"k must be between 1 and the {manifest.class_count} classes, found {manifest.k}",
        ),
        (
            manifest.estimator not in ("sampled", "hybrid") or (manifest.draws >= 1 and manifest.exponent >= 0),
            f"draws must be at least 1 and their exponent at least 0, found {manifest.draws} and {manifest.exponent}",
        ),
        (
            manifest.hidden_rank >= 0 and 0 <= manifest.hidden_variance <= 1,
            "hidden_rank must be at least 0 and hidden_variance a share",
        ),
        (
            1.0 in temperatures and min(temperatures) > 0 and len(set(temperatures)) == len(temperatures),
            f"temperatures must be positive, distinct and contain 1, found {list(temperatures)}",
        ),
        (manifest.family in ("categorical", "bernoulli"), f"family {manifest.family!r} is unknown"),
        (
            manifest.family == "categorical" or (manifest.estimator, codec[0]) == ("dense", "dense"),
            f"family {manifest.family} needs estimator and codec dense, found {manifest.estimator}, {codec[0]}",
        ),
        (all(layer >= 0 for layer in manifest.hidden_layers), "hidden layers must be counted from 0"),
        (manifest.pool in POOLS, f"pool {manifest.pool!r} is not one of {', '.join(POOLS)}"),
        (manifest.hidden_dtype in HIDDEN_DTYPES, f"hidden_dtype {manifest.hidden_dtype!r} is unknown"),
        (
            len(codec) == 2 and isinstance(codec[0], str) and isinstance(codec[1], int),
            f"codec {codec!r} is not a name and a version",
        ),
        (0 <= manifest.range_rows <= manifest.unit_rows, "range_rows must be between 0 and unit_rows"),
        (
            min(manifest.unit_rows, manifest.batch, manifest.threads) >= 1,
            "unit_rows, batch and threads must be at least 1",
        ),
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
    """Return the teacher's fields beside the others, so that errors name the exact field."""
    teacher = {f"teacher.{key}": item for key, item in value["teacher"].items()}
    return {**{key: item for key, item in value.items() if key != "teacher"}, **teacher}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
