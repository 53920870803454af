"""Compare the trials of a sweep and render their page and figures."""
