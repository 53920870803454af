"""Audit, inspect, export and re-check a label store. Imports `store`, `format` and `model`."""
