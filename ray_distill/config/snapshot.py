"""Configure the snapshot: sources, columns, splits, redaction."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_distill.config.section import INPUT, NOT_DECIDING, Section

Format = Literal["auto", "parquet", "jsonl", "csv", "images"]
#: One pattern of files, or several.
Patterns = str | Annotated[tuple[str, ...], Field(min_length=1)]


#: Defaults of ``max_cell_bytes`` and ``max_expansion``.
LARGEST_CELL, LARGEST_EXPANSION = 16 << 20, 200


class Columns(Section):
    """Which source column plays which part."""

    text: str = Field("text", description="the text to classify, to learn or to read from (text tasks)")
    target: str | None = Field(
        None,
        description="seq2seq: what is to be written of `text`; null or empty in a row = "
        "the teacher has yet to write it",
    )
    image: str = Field("image", description="encoded image bytes, or {bytes, path} (image tasks)")
    label: str | None = Field(
        None,
        description="true label: class name or index into `classes`; null = unlabelled. Tasks that "
        "read sets of classes: a list of names or indices (in CSV a JSON array), or a vector of 0 and 1 as long as "
        "`classes`; [] = none applies",
    )
    label_values: Literal["auto", "names", "indices"] = Field(
        "auto",
        description="all labels are names of classes, or all are indices into `classes`, counted from 0; auto: as the "
        "values decide, and an error where both readings are possible",
    )
    label_missing: tuple[str, ...] | None = Field(
        None,
        description="values of `label` that mean unlabelled; null: nan, <NA>, null, and -1 and -100 beside 0, 1, 2…, "
        "unless a class has that name; []: none",
    )
    label_unknown: Literal["quarantine", "unlabelled"] = Field(
        "quarantine", description="rows whose label is not a class: unusable, or kept without a label"
    )
    group: str | None = Field(None, description="rows of one group (user, conversation) stay in one split")
    time: str | None = Field(None, description="event time, for splits by time")
    slices: tuple[str, ...] = Field((), description="columns by which evaluation is also reported")


class OwnSource(Section):
    """Rows of one's own for a split, which the traffic then does not fill.

    They never mix with the traffic: an input that both have is left out of the traffic. Its share goes to train.
    """

    source: Patterns = Field(description="file, folder or glob on any fsspec URL", json_schema_extra=INPUT)
    format: Format = "auto"
    columns: Columns | None = Field(None, description="which column plays which part; default: snapshot.columns")


class Splits(Section):
    """Shares of the four splits, which sum to 1; a row is always in the same split."""

    train: float = Field(0.85, gt=0, lt=1)
    validation: float = Field(0.05, gt=0, lt=1)
    calibration: float = Field(0.05, gt=0, lt=1)
    test: float = Field(0.05, gt=0, lt=1)
    by: Literal["id", "group", "time"] = Field("id", description="what decides a row's split")

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four shares must sum to 1, found {total:g}")
        return self


#: Strength of a kind of views; the modality's table states what a share of the most is.
Strength = Annotated[float, Field(gt=0, le=1)]


class AugmentConfig(Section):
    """Views of train rows, such as shifted images, which the teacher labels too.

    They serve distillation where rows are few. See `ray_distill/snapshots/README.md` for the kinds.
    """

    views: int = Field(2, ge=1, le=64, description="views of a train row; each costs the teacher as much as a row")
    kinds: Literal["auto"] | Annotated[dict[str, Strength], Field(min_length=1)] = Field(
        "auto",
        description="kinds of views with their strengths, above 0 and at most 1, e.g. {word_dropout: 0.1, cut: 0.5}; "
        "auto: those that suit most data of the modality, at their own strengths (never flip and neighbours)",
    )
    most_entropy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="views of which the teacher's entropy is a larger share of the largest possible one (the log of "
        "the number of classes) teach nobody; they stay in the store; default: every view teaches",
    )


class SnapshotConfig(Section):
    """Sources, columns, splits and checks of a snapshot."""

    source: Patterns = Field(description="file, folder or glob on any fsspec URL", json_schema_extra=INPUT)
    format: Format = "auto"
    columns: Columns = Columns()
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="class names in order; default: the teacher's, or sorted labels found where it has no names"
    )
    splits: Splits = Splits()
    validation: OwnSource | None = Field(None, description="labelled rows of one's own for tuning and early stopping")
    calibration: OwnSource | None = Field(None, description="labelled rows of one's own for the teacher check")
    test: OwnSource | None = Field(None, description="labelled rows of one's own for the verdict")
    conflicts: Literal["majority", "first", "drop", "unlabel"] = Field(
        "majority",
        description="the same input with different labels: keep the commonest label (ties: the "
        "first by name), the first seen, drop the row, or keep it unlabelled",
    )
    exclude: tuple[str, ...] = Field(
        (), description="sources whose rows are left out: the teacher's training rows", json_schema_extra=INPUT
    )
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="above this share of unusable rows, stop", json_schema_extra=NOT_DECIDING
    )
    max_cell_bytes: int = Field(
        LARGEST_CELL,
        ge=1,
        description="larger texts, images and lines of JSON are unusable rows, where possible before they are decoded",
    )
    max_expansion: int = Field(
        LARGEST_EXPANSION,
        ge=1,
        description="sources that take over 256 MiB and so many times their stored bytes are refused, row groups of "
        "Parquet left out; raise it for texts with a long beginning in common",
    )
    shard_rows: int = Field(4096, ge=1, description="rows a snapshot shard")
    augment: AugmentConfig | None = Field(
        None, description="views of train rows as further rows for the teacher to label; default: none"
    )

    @model_validator(mode="after")
    def _split_column(self) -> Self:
        by = self.splits.by
        if by != "id" and getattr(self.columns, by) is None:
            raise ValueError(f"splits.by is {by!r} but columns.{by} is not set")
        return self

    @property
    def own_sources(self) -> dict[str, OwnSource]:
        """Return the splits that have a source of their own, by name."""
        found = {"validation": self.validation, "calibration": self.calibration, "test": self.test}
        return {name: source for name, source in found.items() if source is not None}

    @property
    def test_slices(self) -> tuple[str, ...]:
        """Return the columns by which the test split is also reported."""
        own = self.test.columns if self.test is not None else None
        return self.columns.slices if own is None else own.slices

    def with_sources(self, change: Callable[[str], str]) -> Self:
        """Return the same settings with every place of a source changed."""
        own = {
            name: part.model_copy(update={"source": tuple(map(change, as_tuple(part.source)))})
            for name, part in self.own_sources.items()
        }
        source, exclude = tuple(map(change, as_tuple(self.source))), tuple(map(change, self.exclude))
        return self.model_copy(update={"source": source, "exclude": exclude, **own})

    def traffic_alone(self) -> Self:
        """Return the same settings for other traffic, without rows of one's own and without views."""
        return self.model_copy(update={"validation": None, "calibration": None, "test": None, "augment": None})


def as_tuple(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the patterns of a ``source`` field, which may be one or several."""
    return (source,) if isinstance(source, str) else source
