"""Derive a snapshot in which a teacher's texts replace the prompts.

Rows that are not prompts stay unchanged. Each row keeps its parent's split, group, time, slices and count. Labelling
and training read a derived snapshot like any other.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import SequencesConfig
from ray_distill.errors import SnapshotError
from ray_distill.labels.model import rowids
from ray_distill.sequences import attempts
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.select import Scorer, Selection, select
from ray_distill.sequences.store import SequenceStore, count_reasons, prompt_ids
from ray_distill.sequences.texts import FORMS
from ray_distill.snapshots.freeze import Frozen
from ray_distill.snapshots.identity import id_order, ids_to_arrow, row_ids
from ray_distill.snapshots.manifest import RowCounts
from ray_distill.snapshots.reader import Snapshot
from ray_distill.snapshots.rows import QUARANTINE_SCHEMA
from ray_distill.snapshots.splits import SPLITS
from ray_distill.snapshots.take import write_frozen

#: Columns of a derived snapshot in addition to its parent's; null in rows that the teacher did not write.
COLUMNS = {
    "sequence_parent": pa.binary(16),
    "sequence_candidate": pa.int32(),
    "sequence_tokens": pa.int32(),
    "sequence_log_probability": pa.float64(),
    "sequence_score": pa.float64(),
}
#: Prefix of the parent's columns in the table of sequences, because their names are arbitrary.
_PARENT, _SPLIT = "parent.", "sequence_split"


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A derived snapshot, and the counts of kept, merged, dropped and quarantined rows."""

    ref: SnapshotRef
    counts: dict[str, Any]
    """The counts in the manifest's ``derived``."""


def derive(
    parent: Snapshot,
    store: SequenceStore,
    settings: SequencesConfig,
    *,
    scorer: Scorer | None = None,
    url: str,
    shard_rows: int,
) -> Derived:
    """Freeze the stored sequences of a parent's prompts as a snapshot.

    The content does not depend on the time of writing or on the number of writers.

    Args:
        parent: the snapshot of the prompts; ``settings.splits`` names the splits that are prompts.
        store: contains the sequences of all prompts.
        settings: filters and selection of the sequences.
        scorer: the function that ``settings.filters.scorer`` names.
        url: folder of snapshots.
        shard_rows: rows per shard.

    Raises:
        LabelError: some prompts have no sequences yet, or the scorer fails.
        SnapshotError: a split is empty.
    """
    written = store.read(prompt_ids(parent, settings.splits))
    rows = _rows(parent)
    sequences = _beside_parents(attempts.answered(written), rows)
    found = select(sequences, settings, scorer)
    generated = _texts(sequences, found, store.manifest, rows.field("label").type)
    table, split, merged = _merged(generated, _untouched(rows, settings.splits))
    counts = _counts(written, sequences, found, merged)
    _check_none_empty(split, counts)
    frozen = Frozen(
        inputs=table["text"],
        first=np.arange(len(table), dtype=np.int64),
        table=table.drop_columns(["text"]),
        split=split,
        classes=parent.classes,
        conflicts=0,
        groups_crossing=0,
        reasons=counts["quarantined"],
        quarantine=_quarantine(written),
        counts=_row_counts(sequences, found, counts=counts, kept=len(table), merged=merged),
    )
    generator = {name: item for name, item in store.manifest.to_dict().items() if name not in ("kind", "model")}
    about = parent.manifest.with_changes(
        derived={
            "parent": parent.ref.fingerprint,
            "generator": generator,
            "generator_fingerprint": store.manifest.fingerprint,
            "keep": settings.keep,
            "splits": list(settings.splits),
            "filters": settings.filters.model_dump(mode="json"),
            "counts": counts,
        }
    )
    return Derived(ref=write_frozen(frozen, about, shard_rows=shard_rows, url=url), counts=counts)


def require_answers(
    parent: Snapshot, *, splits: Sequence[str], form: str, roles: Collection[str], max_bad_fraction: float
) -> None:
    """Refuse unchanged rows without a learning target; labelling would refuse them much later.

    Args:
        parent: the snapshot.
        splits: splits whose rows the teacher replaces.
        form: form of the rows, a key of `FORMS`.
        roles: roles of a conversation whose messages are targets.
        max_bad_fraction: largest accepted share of rows without a target.

    Raises:
        SnapshotError: more rows than that have no target.
    """
    kind = FORMS[form]
    has_target = kind.has_target
    if has_target is None:
        return
    rows = {split: parent.read(split, columns=["text"])["text"].to_pylist() for split in SPLITS if split not in splits}
    targetless = {split: sum(not has_target(text, roles) for text in texts) for split, texts in rows.items()}
    total = sum(shard.rows for shard in parent.shards)
    if sum(targetless.values()) > max_bad_fraction * total:
        found = ", ".join(f"{count} of {len(rows[split])} in {split}" for split, count in targetless.items() if count)
        raise SnapshotError(
            f"{parent.ref.url}: {kind.without_target(roles)} would stay unchanged and have no target to learn: "
            f"{found}. Add these splits to sequences.splits, so that the teacher answers them"
        )


def _rows(parent: Snapshot) -> pa.Table:
    """Read all rows of the parent, with the number of their split, strings as ``large_string``."""
    parts = []
    for shard in parent.shards:
        part = parent.read_shard(shard)
        part = part.drop_columns([name for name in COLUMNS if name in part.column_names])
        number = pa.array(np.full(len(part), SPLITS.index(shard.split), np.int8))
        parts.append(part.append_column(_SPLIT, number))
    table = pa.concat_tables(parts).combine_chunks()
    return table.cast(
        pa.schema(
            [
                pa.field(field.name, pa.large_string() if pa.types.is_string(field.type) else field.type)
                for field in table.schema
            ]
        )
    )


def _beside_parents(answers: pa.Table, rows: pa.Table) -> pa.Table:
    """Join sequences with the columns of their prompts' rows; the input is named ``input``."""
    at = pc.index_in(answers["row_id"], value_set=rows["row_id"].combine_chunks())
    parents = rows.take(at)
    kept = parents.drop_columns(["row_id", "text", "label"])
    return pa.table(
        {
            **{name: answers[name] for name in answers.column_names},
            "input": parents["text"],
            **{_PARENT + name: kept[name] for name in kept.column_names},
        }
    )


def _texts(sequences: pa.Table, found: Selection, generator: Generator, label: pa.DataType) -> pa.Table:
    """Build the rows of the kept sequences; their label, of the parent's type, is unknown."""
    kept, scores = sequences.filter(pa.array(found.kept)), pa.array(found.scores[found.kept], from_pandas=True)
    texts = [
        FORMS[generator.format].with_answer(row, answer)
        for row, answer in zip(kept["input"].to_pylist(), kept["text"].to_pylist(), strict=True)
    ]
    own = [name for name in kept.column_names if name.startswith(_PARENT)]
    text = pa.chunked_array([pa.array(texts, pa.large_string())])
    return pa.table(
        {
            "row_id": ids_to_arrow(row_ids(text, "text")),
            "text": text,
            "label": pa.nulls(len(kept), label),
            **{name.removeprefix(_PARENT): kept[name] for name in own},
            "sequence_parent": kept["row_id"],
            "sequence_candidate": kept["candidate"],
            "sequence_tokens": kept["tokens"],
            "sequence_log_probability": kept["log_probability"],
            "sequence_score": scores,
        }
    )


def _untouched(rows: pa.Table, splits: Sequence[str]) -> pa.Table:
    """Return the rows of the splits that the teacher does not write."""
    prompts = np.isin(rows[_SPLIT].to_numpy(), [SPLITS.index(name) for name in splits])
    kept = rows.filter(pa.array(~prompts))
    return pa.table(
        {
            **{name: kept[name] for name in kept.column_names},
            **{name: pa.nulls(len(kept), kind) for name, kind in COLUMNS.items()},
        }
    )


def _merged(written: pa.Table, untouched: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int8], int]:
    """Merge rows with equal ids: counts are summed, the earliest split is kept; sort by id.

    Hence no text is in two splits. A merged row keeps the columns of the first by split, parent and candidate.

    Returns:
        The merged rows, the number of each row's split, and how many rows were merged into another.
    """
    table = pa.concat_tables([written, untouched.select(written.column_names)], promote_options="none")
    order = pc.sort_indices(
        table, sort_keys=[(name, "ascending") for name in (_SPLIT, "sequence_parent", "sequence_candidate")]
    )
    table = table.take(order).combine_chunks()
    ids = np.frombuffer(b"".join(table["row_id"].to_pylist()), np.uint8).reshape(-1, 16)
    by_id = np.lexsort((np.arange(len(ids)), *id_order(ids)))
    fresh = np.ones(len(ids), bool)
    fresh[1:] = (ids[by_id][1:] != ids[by_id][:-1]).any(axis=1)
    starts = np.flatnonzero(fresh)
    count = np.add.reduceat(table["count"].to_numpy()[by_id], starts) if len(starts) else np.zeros(0, np.int64)
    first = table.take(pa.array(by_id[starts])).combine_chunks()
    first = first.set_column(first.column_names.index("count"), "count", pa.array(count, pa.int64()))
    split = first[_SPLIT].to_numpy().astype(np.int8)
    return first.drop_columns([_SPLIT]), split, len(ids) - len(starts)


def _counts(written: pa.Table, sequences: pa.Table, found: Selection, merged: int) -> dict[str, Any]:
    kept = sequences.filter(pa.array(found.kept))
    prompts = len(np.unique(rowids.to_numpy(written["row_id"])))
    return {
        "prompts": prompts,
        "sequences": len(sequences),
        "kept": len(kept),
        "merged": merged,
        "dropped": found.dropped,
        "quarantined": dict(sorted(count_reasons(written).items())),
        "prompts_left": len(np.unique(rowids.to_numpy(kept["row_id"]))),
        "tokens_written": pc.sum(sequences["tokens"]).as_py() or 0,
        "tokens_kept": pc.sum(kept["tokens"]).as_py() or 0,
        "cut_off": len(kept) - (pc.sum(kept["ended"]).as_py() or 0),
        "other_tokens": len(kept) - (pc.sum(kept["same_tokens"]).as_py() or 0),
    }


def _row_counts(sequences: pa.Table, found: Selection, *, counts: dict[str, Any], kept: int, merged: int) -> RowCounts:
    """Count sequences, prompts without a sequence and unchanged rows by outcome."""
    quarantined = sum(counts["quarantined"].values())
    dropped = len(sequences) - int(found.kept.sum())
    return RowCounts(
        read=kept + merged + dropped + quarantined,
        kept=kept,
        merged=merged,
        dropped=dropped,
        excluded=0,
        quarantined=quarantined,
    )


def _quarantine(written: pa.Table) -> pa.Table:
    """List prompts without a sequence; the parent's row id replaces the position in a source."""
    bad = attempts.unanswered(written)
    return pa.table(
        [
            pa.array([row.hex() for row in bad["row_id"].to_pylist()], pa.string()),
            pa.array(np.zeros(len(bad), np.int64)),
            bad["reason"].combine_chunks(),
        ],
        schema=QUARANTINE_SCHEMA,
    )


def _check_none_empty(split: npt.NDArray[np.int8], counts: dict[str, Any]) -> None:
    present = Counter(split.tolist())
    empty = [name for number, name in enumerate(SPLITS) if not present[number]]
    if empty:
        lost = {**counts["dropped"], **counts["quarantined"]}
        dropped = ", ".join(f"{count} {reason}" for reason, count in lost.items()) or "none, but texts are equal"
        raise SnapshotError(
            f"the derived split {', '.join(empty)} is empty: {counts['kept']} of {counts['sequences']} sequences for "
            f"{counts['prompts']} prompts were kept; dropped: {dropped}. Loosen sequences.filters, or provide more "
            "prompts"
        )
