"""Recording of runs and the model registry; the only importer of mlflow."""
