"""Measure step times, FLOPs and memory, and report them to the driver."""
