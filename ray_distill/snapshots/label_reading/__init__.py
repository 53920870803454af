"""Decide how a whole column of labels is read, and turn labels into class names.

Imports config, errors, and of `snapshots` the rows, the merging of copies and the sources' columns of labels.
"""
