"""Load and save models as standard transformers directories.

Imports `core`, `text` and `heads`.
"""
