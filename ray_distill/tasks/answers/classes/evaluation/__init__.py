"""Judge classifiers: a table of log-probabilities a row, and measures of it.

Imports evaluation and models.
"""
