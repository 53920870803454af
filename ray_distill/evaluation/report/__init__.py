"""Assemble the evaluation report and render its page and figures."""
