"""Torch tensors in, (sum, weight) out. Imports torch alone."""
