"""Run the trials of a sweep side by side and publish their results.

Imports `core`, `stages`, `training`.
"""
