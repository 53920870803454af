"""Real data that installs from package registries, for the quickstart and the golden runs."""
