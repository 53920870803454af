"""Stage 4, judge: fidelity, quality, calibration, robustness, drift, efficiency, cost."""
