"""Torch tensors in, (sum, weight) out: every loss by name in `catalogue`. Imports torch alone."""
