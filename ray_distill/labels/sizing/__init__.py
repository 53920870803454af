"""Forecast the size of labels and choose how to store them. Imports `format` and `model`."""
