"""Record runs and register models; the only importer of mlflow."""
