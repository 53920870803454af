"""Families of answers: one folder a family, imported when first used.

Only `catalogue` names a family.
"""
