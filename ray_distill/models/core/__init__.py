"""Describe a loaded model, run it and fingerprint it. Imports no other room of `models`."""
