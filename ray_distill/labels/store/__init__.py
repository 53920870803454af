"""Open a label store, commit units, read label sets. Imports `model` and `format`."""
