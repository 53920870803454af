"""fsspec paths, exclusive create, manifests and digests. Imports no torch, no ray."""
