"""Configure the losses, validate them against labels and student, and reduce them over all workers."""
