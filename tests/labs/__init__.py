"""Laboratories: campaigns, clusters, drivers and kills that several tests and benchmarks share."""
