"""Fit a linear classification head on an encoder that has none. Imports `core`."""
