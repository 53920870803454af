"""Judge language models: sums a document, written texts, benchmarks.

Imports evaluation and models.
"""
