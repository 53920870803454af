"""Tasks: an input modality (`inputs/`) times a family of answers (`answers/`).

Imports labels and below.
"""
