"""Ways to make training rows: siblings behind `base`."""
