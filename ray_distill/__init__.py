"""Distil offline: a teacher labels once, students are trained from the store many times."""
