"""Forecast bytes, time and money of a campaign from a few rows and timed steps.

Imports `core`, `labelling`, `stages` and `campaign`.
"""
