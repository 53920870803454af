"""Start training workers with Ray Train and send their outcome to the driver.

Imports `core`.
"""
