"""Start training workers with Ray Train and carry their metrics to the driver. Imports `core`."""
