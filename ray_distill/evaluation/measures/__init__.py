"""Compute metrics with intervals: quality, robustness, drift, efficiency, cost."""
