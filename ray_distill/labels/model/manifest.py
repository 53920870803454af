"""The content of ``store.json``: settings that every shard of a label store must agree with."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from ray_distill.artifacts import Document
from ray_distill.errors import ChangedModel, CorruptStore, DistillError, LabelError, StoreMismatch
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.differences import different_settings
from ray_distill.labels.model.part_specs import AnswerSpace, DistributionsSpec, PartSpec, VectorsSpec, checked
from ray_distill.labels.model.signal import DISTRIBUTIONS

#: Version of the store's layout: manifest, log records and file names. Those from release 0.2 on stay readable.
STORE_VERSION = 3

#: Computed from the data when a store is created: a later run adopts the store's own, and does not compare.
FOUND = ("range_rows", "fits", "measured")

#: Fields of the teacher that do not decide its answers: its fingerprint covers weights, dtype and processor.
DESCRIPTIVE = {"model", "revision", "head", "checkpoint"}


class TeacherIdentity(Document):
    """The teacher that fills a store."""

    fingerprint: str = Field(min_length=1)
    model: str | None = None
    """Its location, for readers; not compared."""
    revision: str | None = None
    """Its revision, for readers; not compared."""
    dtype: str | None = None
    checkpoint: str | None = None
    """Digest of its checkpoint's files, by which evaluation compares it whatever engine labelled; not part of the
    identity, which has it already. None for a function's model."""
    head: str | None = None
    """Folder of its fitted head; not compared. None for a teacher that has its own."""
    tokens: str | None = None
    """Fingerprint of a language model's tokens; None for other models."""
    engine: str | None = None
    """Engine and version, where they decide the answers' last digits."""

    @property
    def name(self) -> str:
        """Its location; its fingerprint where no location was recorded."""
        return self.model or self.fingerprint

    def require(self, found: str, model: str) -> None:
        """Compare this teacher with the fingerprint of a model that was loaded from ``model``.

        Raises:
            ChangedModel: they differ.
        """
        if found != self.fingerprint:
            raise self.changed(found, model)

    def changed(self, found: str, model: str) -> ChangedModel:
        """Return the error for a model at ``model`` that is not this teacher."""
        head = f" (with the head {self.head})" if self.head else ""
        return ChangedModel(
            f"labels.teacher: {model}{head} is not the teacher that made the labels, {self.name}: it has other "
            f"weights, settings or tokens here ({found}, the store names {self.fingerprint}). Restore its files, "
            "on every machine, or give the campaign of that store; labels of this teacher need a new labels.store",
            found=found,
        )


class StoreManifest(Document):
    """Teacher, parts of the signal and batch plan of a store.

    Two runs may share a store if these are equal.
    """

    refusal: ClassVar[type[DistillError]] = CorruptStore

    version: int = STORE_VERSION
    task: str
    teacher: TeacherIdentity
    parts: dict[str, PartSpec]
    """What each unit has one file of, by the part's name: `DISTRIBUTIONS`, and ``hidden.<layer>``."""
    fits: dict[str, str] = {}
    """Arrays that were fitted before the first unit (id order, PCA bases), by name: digests of files in ``fits/``."""
    measured: dict[str, Any] = {}
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

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        misnamed = [f"{name} should be {spec.part}" for name, spec in self.parts.items() if name != spec.part]
        return checked(
            self,
            (DISTRIBUTIONS in self.parts, f"there is no part {DISTRIBUTIONS}"),
            (not misnamed, f"parts have other names than their content: {', '.join(misnamed)}"),
            (len({spec.pool for spec in self.hidden.values()}) < 2, "all hidden layers need the same pool"),
            (0 <= self.range_rows <= self.unit_rows, "range_rows must be between 0 and unit_rows"),
            (min(self.unit_rows, self.batch, self.threads) >= 1, "unit_rows, batch and threads must be at least 1"),
        )

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that decides the bytes of a shard."""
        return fingerprint(self.identity())

    @property
    def rows_a_unit(self) -> int:
        """Rows of the fixed ranges into which a snapshot's shards fall."""
        return self.range_rows or self.unit_rows

    @property
    def distributions(self) -> DistributionsSpec:
        """The part `DISTRIBUTIONS`."""
        spec = self.parts[DISTRIBUTIONS]
        assert isinstance(spec, DistributionsSpec)  # its name is
        return spec

    @property
    def space(self) -> AnswerSpace:
        """The answers that the distributions are over."""
        return self.distributions.space

    @property
    def hidden(self) -> dict[int, VectorsSpec]:
        """Parts with hidden states by layer, ascending."""
        found = {spec.layer: spec for spec in self.parts.values() if isinstance(spec, VectorsSpec)}
        return dict(sorted(found.items()))

    @property
    def pool(self) -> str:
        """How the hidden states of all layers are pooled; ``mean`` where there are none."""
        return next((spec.pool for spec in self.hidden.values()), "mean")

    def with_distributions(self, **changes: Any) -> Self:
        """Return a manifest with other settings of the distributions."""
        return self.with_changes(parts={**self.parts, DISTRIBUTIONS: self.distributions.with_changes(**changes)})

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the bytes of a shard.

        These are `to_dict` without the fields that only describe.
        """
        value = self.to_dict()
        value["teacher"] = {key: item for key, item in value["teacher"].items() if key not in DESCRIPTIVE}
        del value["measured"]
        return value

    def adopt(self, store: "StoreManifest") -> Self:
        """Return these settings with what an existing store has found for itself."""
        return self.with_changes(**{name: getattr(store, name) for name in FOUND})

    @classmethod
    def from_dict(cls, value: Any, where: str = "") -> Self:
        """Rebuild a manifest; see `Document.from_dict`.

        Raises:
            LabelError: it is of another version, or its values are not usable.
            CorruptStore: fields are missing, unknown or of the wrong kind.
        """
        version = value.get("version") if isinstance(value, Mapping) else None
        if not isinstance(version, int):
            raise CorruptStore(f"{where}: found the version {version!r}, this is not a label store's manifest")
        if version != STORE_VERSION:
            remedy = (
                "upgrade ray-distill" if version > STORE_VERSION else "it is older than 0.2: label into a new store"
            )
            raise LabelError(f"the label store has version {version}, this release reads {STORE_VERSION}: {remedy}")
        return super().from_dict(value, where)

    def require(self, requested: "StoreManifest", url: str) -> None:
        """Refuse to use this store for the manifest ``requested``.

        Settings that stores find for themselves (`FOUND`) may differ.

        Raises:
            StoreMismatch: names each field of the configuration that differs, with both sides where they can be read.
        """
        requested = requested.adopt(self)
        if self.fingerprint == requested.fingerprint:
            return
        lines = different_settings(self.identity(), requested.identity())
        raise StoreMismatch(
            f"{url} was made for other settings: {'; '.join(lines)}. Set labels.store to another URL, such as {url}-2, "
            "for labels of these settings, or take the settings back"
        )


def parts_of(specs: Sequence[DistributionsSpec | VectorsSpec]) -> dict[str, DistributionsSpec | VectorsSpec]:
    """Return the parts of a manifest, by their names."""
    return {spec.part: spec for spec in specs}
