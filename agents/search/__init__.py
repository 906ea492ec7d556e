"""Search over attempts."""
