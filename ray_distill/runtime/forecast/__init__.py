"""Forecast bytes, time and money of labelling from a probe on few rows.

Imports `core`, `labelling`, `stages` and `campaign`.
"""
