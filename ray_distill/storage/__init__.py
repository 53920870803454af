"""Store files and an append-only log on fsspec paths. Imports neither torch nor ray."""
