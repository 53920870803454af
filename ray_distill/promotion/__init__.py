"""Decide, from an EvalReport, PROMOTE, HOLD or REJECT (stage 5). Imports no torch."""
