"""Define the operations of a run; the spool stores them as JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Recorded(BaseModel):
    """The base of all operations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(description="the run's id: the server's, or a local one if the run began during an outage")


class CreateRun(Recorded):
    """Create a run under a local id."""

    op: Literal["create"] = "create"
    name: str
    parent: str | None = Field(description="id of the run in which it is nested")
    start: int = Field(description="milliseconds since 1970; no other run of the process has the same")
    tags: dict[str, str]


class ReopenRun(Recorded):
    """Set a run's status to running."""

    op: Literal["reopen"] = "reopen"
    tags: dict[str, str]


class LogParams(Recorded):
    """Record settings."""

    op: Literal["params"] = "params"
    values: dict[str, str]


class SetTags(Recorded):
    """Record short facts."""

    op: Literal["tags"] = "tags"
    tags: dict[str, str]


class LogMetrics(Recorded):
    """Record numbers."""

    op: Literal["metrics"] = "metrics"
    points: tuple[tuple[str, float, int, int], ...] = Field(description="name, value, milliseconds, step")


class LogArtifact(Recorded):
    """Upload a file or a folder."""

    op: Literal["artifact"] = "artifact"
    path: str
    folder: str = Field(description="folder of the run's artifacts; empty for their root")


class LogDataset(Recorded):
    """Record a dataset as an input."""

    op: Literal["dataset"] = "dataset"
    name: str
    digest: str
    source: str
    context: str
    profile: dict[str, Any]


class LogModel(Recorded):
    """Log a transformers directory as a model."""

    op: Literal["model"] = "model"
    path: str
    name: str
    task: str
    example: tuple[str, ...] = Field(description="inputs: texts, or images as base64")
    metrics: dict[str, float]
    time: int = Field(description="milliseconds since 1970")


class EndRun(Recorded):
    """Close a run."""

    op: Literal["end"] = "end"
    status: Literal["FINISHED", "FAILED", "KILLED"]
    tags: dict[str, str]
    time: int = Field(description="milliseconds since 1970")


class AbandonRun(Recorded):
    """Close a run whose process died, unless another process has closed or reopened it."""

    op: Literal["abandon"] = "abandon"
    name: str
    start: int = Field(description="`CreateRun.start`, by which a run with a local id is found; 0 for other runs")
    time: int = Field(description="milliseconds since 1970 of the last sign of the process")


Operation = (
    CreateRun | ReopenRun | LogParams | SetTags | LogMetrics | LogArtifact | LogDataset | LogModel | EndRun | AbandonRun
)
_READER: TypeAdapter[Operation] = TypeAdapter(Annotated[Operation, Field(discriminator="op")])


def read_operation(text: str) -> Operation:
    """Read an operation's JSON.

    Raises:
        ValueError: the text is not an operation.
    """
    return _READER.validate_json(text)
