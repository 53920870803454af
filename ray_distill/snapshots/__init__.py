"""Stage 1, freeze the input: sources, row ids, duplicates, splits, quarantine. Imports storage; no torch, no ray."""
