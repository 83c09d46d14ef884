"""Examinations: siblings behind `base`."""
