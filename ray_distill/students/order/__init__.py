"""Order examples as a pure function of seed, epoch and step, and prefetch their batches."""
