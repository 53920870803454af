"""Label and generate with Ray Data: teacher actors, isolation of failing rows, commits.

Imports `core`.
"""
