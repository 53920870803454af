"""Train a module with torch or DeepSpeed ZeRO, and convert engine states to a portable form."""
