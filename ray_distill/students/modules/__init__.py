"""Wrap a student with its projections and its head so that an engine can train it."""
