"""Convert signals to bytes and back: codecs, shards, hidden states. Imports `model`."""
