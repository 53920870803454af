"""Connect to Ray, open a campaign's session and classify failures.

Imports no other folder of `runtime`.
"""
