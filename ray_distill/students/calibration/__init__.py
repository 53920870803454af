"""Fit a temperature to a trained arm on the calibration split; imports what `students` may."""
