"""The snapshot that a teacher has written: its texts where there were prompts, and the other rows as they are.

Each row keeps what its parent is: split, group, time, slices, count. Labelling and training read it like any other.
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
from ray_distill.sequences.texts import teaches, with_answer
from ray_distill.snapshots.freeze import Frozen
from ray_distill.snapshots.identity import id_order, ids_to_arrow, row_ids
from ray_distill.snapshots.manifest import RowCounts
from ray_distill.snapshots.reader import Snapshot
from ray_distill.snapshots.rows import QUARANTINE_SCHEMA
from ray_distill.snapshots.splits import SPLITS
from ray_distill.snapshots.take import write_frozen

#: Columns that a derived snapshot has beside its parent's; null in rows that the teacher did not write.
COLUMNS = {
    "sequence_parent": pa.binary(16),
    "sequence_candidate": pa.int32(),
    "sequence_tokens": pa.int32(),
    "sequence_log_probability": pa.float64(),
    "sequence_score": pa.float64(),
}
#: Before the names of a parent's columns, among those of the sequences: they may be called anything.
_PARENT, _SPLIT = "parent.", "sequence_split"


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A derived snapshot, and what became of everything on the way to it."""

    ref: SnapshotRef
    counts: dict[str, Any]
    """As in the manifest's ``derived``."""


def derive(
    parent: Snapshot,
    store: SequenceStore,
    settings: SequencesConfig,
    *,
    scorer: Scorer | None = None,
    url: str,
    shard_rows: int,
) -> Derived:
    """Make the snapshot of what a store holds for a parent's prompts; the same content whoever wrote it, and when.

    Args:
        parent: whose splits named in the settings are prompts.
        store: with all of them written.
        settings: what is kept.
        scorer: the function that ``settings.filters.scorer`` names.
        url: folder of snapshots.
        shard_rows: rows a shard.

    Raises:
        LabelError: some prompts are not written, or the scorer fails.
        SnapshotError: nothing is left of a split.
    """
    written = store.read(prompt_ids(parent, settings.splits))
    rows = _rows(parent)
    sequences = _beside_parents(attempts.answered(written), rows)
    found = select(sequences, settings, scorer)
    table, split, merged = _merged(_texts(sequences, found, store.generator), _untouched(rows, settings.splits))
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
        counts=_row_counts(sequences, found, counts, len(table), merged),
    )
    generator = {name: item for name, item in store.generator.to_dict().items() if name not in ("kind", "model")}
    about = parent.manifest.with_changes(
        derived={
            "parent": parent.ref.fingerprint,
            "generator": generator,
            "generator_fingerprint": store.generator.fingerprint,
            "keep": settings.keep,
            "splits": list(settings.splits),
            "filters": settings.filters.model_dump(mode="json"),
            "counts": counts,
        }
    )
    return Derived(ref=write_frozen(frozen, about, shard_rows=shard_rows, url=url), counts=counts)


def require_answers(
    parent: Snapshot, splits: Sequence[str], form: str, roles: Collection[str], max_bad_fraction: float
) -> None:
    """Refuse rows that stay as they are and in which nothing can be learnt: labelling would, much later.

    Args:
        parent: the snapshot.
        splits: whose rows the teacher writes anew.
        form: of the rows, see `with_answer`; any text can be learnt.
        roles: whose messages are learnt of a conversation.
        max_bad_fraction: share of all rows that may have none.

    Raises:
        SnapshotError: more have none.
    """
    if form == "text":
        return
    rows = {split: parent.read(split, columns=["text"])["text"].to_pylist() for split in SPLITS if split not in splits}
    mute = {split: sum(not teaches(text, form, roles) for text in texts) for split, texts in rows.items()}
    total = sum(shard.rows for shard in parent.shards)
    if sum(mute.values()) > max_bad_fraction * total:
        found = ", ".join(f"{count} of {len(rows[split])} in {split}" for split, count in mute.items() if count)
        raise SnapshotError(
            f"{parent.ref.url}: {_mute(form, roles)} stay as they are, and nothing can be learnt of them: {found}. Add "
            "these splits to sequences.splits, so that the teacher answers them"
        )


def _mute(form: str, roles: Collection[str]) -> str:
    return "sources without a target" if form == "pair" else f"conversations without a message of {' or '.join(roles)}"


def _rows(parent: Snapshot) -> pa.Table:
    """All rows of the parent, with the number of their split; texts large."""
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
    """Sequences, each with the columns of the row that was its prompt; the row's input is called ``input``."""
    at = pc.index_in(answers["row_id"], value_set=rows["row_id"].combine_chunks())
    parents = rows.take(at)
    kept = [name for name in rows.column_names if name not in ("row_id", "text", "label")]
    return pa.table(
        {
            **{name: answers[name] for name in answers.column_names},
            "input": parents["text"],
            **{_PARENT + name: parents[name] for name in kept},
        }
    )


def _texts(sequences: pa.Table, found: Selection, generator: Generator) -> pa.Table:
    """The rows that the kept sequences make."""
    kept, scores = sequences.filter(pa.array(found.kept)), pa.array(found.scores[found.kept], from_pandas=True)
    texts = [
        with_answer(row, answer, generator.format)
        for row, answer in zip(kept["input"].to_pylist(), kept["text"].to_pylist(), strict=True)
    ]
    own = [name for name in kept.column_names if name.startswith(_PARENT)]
    text = pa.chunked_array([pa.array(texts, pa.large_string())])
    return pa.table(
        {
            "row_id": ids_to_arrow(row_ids(text, "text")),
            "text": text,
            "label": pa.nulls(len(kept), pa.int32()),
            **{name.removeprefix(_PARENT): kept[name] for name in own},
            "sequence_parent": kept["row_id"],
            "sequence_candidate": kept["candidate"],
            "sequence_tokens": kept["tokens"],
            "sequence_log_probability": kept["log_probability"],
            "sequence_score": scores,
        }
    )


def _untouched(rows: pa.Table, splits: Sequence[str]) -> pa.Table:
    """Rows of the splits that the teacher does not write."""
    prompts = np.isin(rows[_SPLIT].to_numpy(), [SPLITS.index(name) for name in splits])
    kept = rows.filter(pa.array(~prompts))
    return pa.table(
        {
            **{name: kept[name] for name in kept.column_names},
            **{name: pa.nulls(len(kept), kind) for name, kind in COLUMNS.items()},
        }
    )


def _merged(written: pa.Table, untouched: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int8], int]:
    """All rows by their ids, equal ones once with their counts summed, in the earliest of their splits.

    So no text stands in two splits; of equal ones the first by split, parent and candidate says where it came from.
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


def _row_counts(sequences: pa.Table, found: Selection, counts: dict[str, Any], kept: int, merged: int) -> RowCounts:
    """Where every sequence, every prompt without one and every untouched row went."""
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
    """Prompts without an answer: the parent's row id stands where the place in a source does."""
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
        told = ", ".join(f"{count} {reason}" for reason, count in lost.items()) or "nothing, but texts are equal"
        raise SnapshotError(
            f"nothing is left of the split {', '.join(empty)}: of {counts['sequences']} sequences for "
            f"{counts['prompts']} prompts {counts['kept']} were kept; dropped: {told}. Loosen sequences.filters, or "
            "give more prompts"
        )
