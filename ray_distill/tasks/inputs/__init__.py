"""Input modalities, one file each.

Imports labels and below, numpy and pyarrow; torch only when collating.
"""
