"""Make labels (stage 2): engines, and the reduction of logits on the device."""
