"""Stage 2, the label store: signals, codecs, log, writer, reader and audit.

Imports storage; no torch, no ray.

Labelling calls, in this order: `create_or_open`, `LabelStore.coverage` (or `pending`), a teacher, then for each
unit `split_unusable` and `write_attempt`, and for many of them at once `LabelStore.commit`; last, `LabelStore.ref`.
Training and evaluation call `open_label_set`. Between stages signals travel as tables: `signal_to_table`.

    units     work units, receipts, file names        rowids   row ids as flat arrays
    manifest  what a store must agree with            store    coverage, commits, references
    signal    the teacher's answer, as numpy          schema   the same between stages, as Arrow
    checks    is it fit to be stored                  codecs/  the same on disk
    shards    the bytes of files                      hidden   those of hidden states
    fits      arrays fitted before the first unit     writer   one attempt at a unit
    reader    the labels of one snapshot, verified    audit    everything, verified
    inspect   one row, readably                       export   plain Parquet for other tools
"""
