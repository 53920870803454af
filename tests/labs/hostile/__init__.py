"""Try to make a campaign promote what nobody judged, lose labels, show a secret, or end without a way out.

``python -m tests.labs.hostile FOLDER`` runs every try and prints a table; `.ci/nightly` does (part ``hostile``).
"""
