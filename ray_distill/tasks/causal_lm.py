"""Causal language modelling: at each token of a text, a distribution over the next one."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.tasks.base import Batch, Encoded, Processor, Ragged, Rejected
from ray_distill.tasks.classification import encoded, pad_sequences, real_tokens, sift
from ray_distill.tasks.text_classification import read_text


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """What labelling raw text needs; see `LabelTask`. Its students are not trained yet, so it is no `Task`."""

    name: str = "causal_lm"
    input_column: str = "text"

    def encode(self, rows: pa.Table, processor: Processor) -> Encoded:
        """Tokenise; unusable texts go apart, and so do those of fewer than two tokens: nothing follows anything."""
        texts, row_ids, rejected = sift(rows, self.input_column, read_text)
        found = encoded(row_ids, dict(processor.texts(texts)), rejected, processor)
        lengths = np.diff(found.features["input_ids"].offsets)
        short = tuple(Rejected(row_id=row_ids[int(row)].as_py(), reason="fewer than two tokens")
                      for row in np.flatnonzero(lengths < 2))
        kept = found.take(np.flatnonzero(lengths >= 2))
        return Encoded(row_ids=kept.row_ids, features=kept.features, rejected=(*rejected, *short))

    def collate(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> Batch:
        """Token ids int64 ``[B, L]``, padded at the end to the longest of the batch, and ``attention_mask``."""
        batch = {name: pad_sequences(feature, index) for name, feature in encoded.features.items()}
        return {**batch, "attention_mask": real_tokens(encoded.features["input_ids"], index)}

    def positions(self, encoded: Encoded) -> Ragged:
        """Every token but the last: what follows it is known, and can be learnt."""
        offsets = encoded.features["input_ids"].offsets
        ends = offsets - np.arange(len(offsets))
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
        return Ragged(values=within.astype(np.int32), offsets=ends)
