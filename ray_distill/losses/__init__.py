"""Compute losses: torch tensors in, (sum, weight) out. Imports torch alone."""
