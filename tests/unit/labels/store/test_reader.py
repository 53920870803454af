"""The label store over a real snapshot: a reference alone is enough to read its labels."""

import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.config import Columns, SnapshotConfig
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.snapshots import open_snapshot, take_snapshot
from ray_distill.testing.labels import fake_manifest, label_all


def test_a_reference_finds_snapshot_and_labels_by_itself(tmp_path):
    """Freeze, label, pin; then open by the reference: every row of every split, in the snapshot's order."""
    table = pa.table({"text": [f"text {n}" for n in range(60)], "label": ["a", "b"] * 30})
    pq.write_table(table, tmp_path / "rows.parquet")
    config = SnapshotConfig(source=str(tmp_path / "rows.parquet"), columns=Columns(label="label"), shard_rows=16)
    snapshot = open_snapshot(take_snapshot(config, input_column="text", seed=0, url=str(tmp_path / "snapshots")))
    url = str(tmp_path / "store")
    label_all(url, fake_manifest(unit_rows=8), snapshot)
    row_ids, signal = open_label_set(open_store(url).ref(snapshot)).read()
    shards = [snapshot.read_shard(shard, columns=["row_id"]) for shard in snapshot.shards]
    assert row_ids.to_pylist() == pa.concat_tables(shards).column("row_id").to_pylist()
    assert signal.distributions.rows == 60
    assert audit(url, snapshot.ref).ok and audit(url, snapshot.ref.url).ok
