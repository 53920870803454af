"""Configure the snapshot: sources, columns, splits, redaction."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_distill.config.section import INPUT, NOT_DECIDING, Section


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
    group: str | None = Field(None, description="rows of one group (user, conversation) stay in one split")
    time: str | None = Field(None, description="event time, for splits by time")
    slices: tuple[str, ...] = Field((), description="columns by which evaluation is also reported")


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


class SnapshotConfig(Section):
    """Sources, columns, splits and checks of a snapshot."""

    source: str | tuple[str, ...] = Field(description="file, folder or glob on any fsspec URL", json_schema_extra=INPUT)
    format: Literal["auto", "parquet", "jsonl", "csv", "images"] = "auto"
    columns: Columns = Columns()
    classes: tuple[str, ...] | None = Field(None, description="class names in order; default: sorted labels found")
    splits: Splits = Splits()
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
    shard_rows: int = Field(4096, ge=1, description="rows a snapshot shard")

    @model_validator(mode="after")
    def _split_column(self) -> Self:
        by = self.splits.by
        if by != "id" and getattr(self.columns, by) is None:
            raise ValueError(f"splits.by is {by!r} but columns.{by} is not set")
        return self
