"""Stage 2, the label store: signals, codecs, log, writer, reader, audit. Imports storage; no torch, no ray."""
