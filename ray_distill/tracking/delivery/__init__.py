"""Deliver operations to MLflow within a bounded time, or store them."""
