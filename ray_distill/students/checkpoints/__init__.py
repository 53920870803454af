"""Write, upload, verify and read checkpoints."""
