"""Run models over encoded rows, batch by batch, the same for every family of answers.

Imports models and tasks.
"""
