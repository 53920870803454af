"""Run the trials of a sweep side by side and publish what they reached. Imports `core`, `stages`, `training`."""
