"""Tasks: how inputs are read (`inputs/`) times what is answered (`answers/`). Imports labels and below."""
