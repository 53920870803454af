"""Decide which examples come when, as a pure function of seed, epoch and step, and prefetch their batches."""
