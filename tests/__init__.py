"""Tests of the package; `labs` has what several of them share."""
