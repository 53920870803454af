"""Judge multi-label models: a table of log-odds and decisions a row, and measures of it.

Imports evaluation and models.
"""
