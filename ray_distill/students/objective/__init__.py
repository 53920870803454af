"""Configure losses, validate them against labels and student, and reduce them globally."""
