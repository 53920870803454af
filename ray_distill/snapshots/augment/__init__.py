"""Make seeded views of train rows, and the snapshot that has them beside these rows.

Imports storage, config and the rest of `snapshots`; a modality passes its kinds of views as functions.
"""
