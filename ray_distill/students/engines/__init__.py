"""Train a module with plain torch or DeepSpeed ZeRO, and convert engine states to a portable form."""
