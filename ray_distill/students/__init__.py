"""Stage 3, train from labels: sampler, batches, engines, loop, checkpoints. Never imports teachers."""
