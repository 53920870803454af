"""Describe labels as plain data: signals, manifests, row ids, work units.

Imports storage and snapshots only.
"""
