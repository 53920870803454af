"""Stage 2, the label store: signals, codecs, log, writer, reader and audit.

Imports storage; no torch, no ray.

Labelling calls, in this order: `create_or_open`, `LabelStore.coverage` (or `pending`), a teacher, then for each
unit `split_unusable` and `write_attempt`, and for many of them at once `LabelStore.commit`; last, `LabelStore.ref`.
Training and evaluation call `open_label_set`. Between stages signals travel as tables: `signal_to_table`.

    model/    work units and coverage, row ids, manifest and its parts, signals as numpy, what is fit to be stored
    format/   signals as Arrow between stages, codecs, the bytes of shards, hidden states, arrays fitted once
    store/    coverage, commits and references, one attempt at a unit, the verified labels of one snapshot, means
    tools/    audit, agreement with the live teacher, one row readably, plain Parquet for other tools
    sizing/   bytes of a store before it is filled
"""
