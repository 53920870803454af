"""The contract of a modality: everything that the stages need to read inputs of one kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.config import Campaign, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.snapshots.augment.kinds import Kind
from ray_distill.snapshots.rows import Why
from ray_distill.snapshots.sources.columns import Companions
from ray_distill.tasks.encoded import Batch, Encoded

#: A seeded corruption: (rows, severity 1..3, generator) -> rows of the same ids, in the same order.
Corruption = Callable[[pa.Table, int, np.random.Generator], pa.Table]
Index = npt.NDArray[np.int64]
#: Form of a row that a teacher writes: a text, a conversation, or a source with its target.
Form = Literal["text", "chat", "pair"]
Floats = npt.NDArray[np.float64]


class Processor(Protocol):
    """A tokenizer or an image processor.

    Each modality requires more methods and checks for them.
    """

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that decides the features."""


#: (folder, transformers config, settings) -> processor; errors as `Inputs.read_processor`.
ReadProcessor = Callable[[Path, Any, TeacherConfig], Processor]


#: (processor, settings, most tokens) -> processor; as `Inputs.adapt_processor`.
AdaptProcessor = Callable[[Processor, LanguageConfig | None, int | None], Processor]


def _import(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def _nothing_refused(config: Campaign) -> list[str]:
    return []


def _plain_text(config: Campaign) -> Form:
    return "text"


def _never(config: Campaign) -> bool:
    return False


def _always(config: Campaign) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A modality: plain functions over snapshot rows.

    A task of the user's own can replace any one of them.
    """

    name: str
    column: str
    """Snapshot column that contains the input."""
    encode: Callable[[pa.Table, Processor], Encoded]
    """Turn snapshot rows (``row_id``, the input column) into features; unusable rows are returned as rejected."""
    collate: Callable[[Encoded, Index], Batch]
    """Build tensors of the given rows; ragged features are padded at the end to the longest row of the batch."""
    example: Callable[[Processor], Encoded]
    """Encode one made-up row, to try a model on."""
    statistics: Callable[[pa.ChunkedArray], Mapping[str, Floats]]
    """Compute simple statistics of every input, ``[N]`` each, for drift tests."""
    show: Callable[[bytes | None], str]
    """Render one input for a terminal."""
    binary: bool = False
    """Inputs are files such as images, not texts: served as bytes, and written as base64 where only text may stand."""
    verify: Callable[[pa.ChunkedArray], Why] | None = None
    """Return why inputs are not usable: a `ray_distill.snapshots.rows.Reason` each, 0 for usable ones.

    It is called when a snapshot is taken; missing inputs and blank texts are found without it.
    """
    answering: str = ""
    """Feature at whose tokens a model can answer: collated it is ``[B, L]``. Empty for inputs without tokens."""
    corruptions: Mapping[str, Corruption]
    """Seeded corruptions by name."""
    views: Mapping[str, Kind] = field(default_factory=dict)
    """Kinds of views by name; empty: the inputs have none."""
    processor: str
    """Function that reads a checkpoint's processor, ``package.module:function``; it is imported when first called.

    It lies in a layer above this one (``models``), which alone imports transformers.
    """
    adapt: str = ""
    """Function that applies language settings to a processor of the user's, ``package.module:function``; empty: none.
    """
    form: Callable[[Campaign], Form] = _plain_text
    """Return the form of a row that a teacher writes."""
    nested: Callable[[Campaign], bool] = _never
    """Return True where values of the column may be nested, such as conversations; they become canonical JSON."""
    companions: Companions = Companions()
    """Columns of a source that belong to a nested input, and the forms of data sets that are recognised."""
    corruptible: Callable[[Campaign], bool] = _always
    """Return False where the corruptions would break what the campaign's inputs are, such as conversations."""
    refuse: Callable[[Campaign], list[str]] = _nothing_refused
    """List the settings that these inputs cannot serve, each as ``<config path>: <what is wrong>; <what to do>``."""

    def read_processor(self, folder: Path, model_config: Any, config: TeacherConfig) -> Processor:
        """Read the tokenizer or image processor of a local checkpoint.

        Args:
            folder: the checkpoint.
            model_config: its transformers config.
            config: settings of the model; ``model`` is named in messages.

        Raises:
            ModelError: it has none, or one that cannot be used.
            ConfigError: the settings do not suit it.
        """
        read: ReadProcessor = _import(self.processor)
        return read(folder, model_config, config)

    def adapt_processor(
        self, processor: Processor, settings: LanguageConfig | None, max_length: int | None
    ) -> Processor:
        """Apply language settings to a processor that a ``module:function`` returned.

        Args:
            processor: the function's.
            settings: of the campaign, or saved with the model; None where there are none.
            max_length: tokens kept of an input; None: as many as the processor keeps.

        Raises:
            ModelError, ConfigError: the settings do not suit it.
        """
        if not self.adapt:
            return processor
        adapt: AdaptProcessor = _import(self.adapt)
        return adapt(processor, settings, max_length)

    def corruptions_of(self, config: Campaign) -> Mapping[str, Corruption]:
        """Return the corruptions that the campaign's inputs can suffer."""
        return self.corruptions if self.corruptible(config) else {}
