"""Build students: fresh, from a teacher's layers, from a checkpoint or from a function."""
