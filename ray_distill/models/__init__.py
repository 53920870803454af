"""Load, build, initialise and save torch and transformers models."""
