"""Open the models of a campaign before anything is spent, and try them on made-up rows.

Runs where a command starts, without Ray: imports models, teachers, students and below, and the manifest of labelling.
"""
