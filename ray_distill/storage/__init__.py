"""Store files, an append-only log and work units on fsspec paths.

Imports neither torch nor ray.
"""
