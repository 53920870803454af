"""Stage 2, make labels: engines and the reduction of logits on the device. Never imports students."""
