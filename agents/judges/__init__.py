"""What says how good an attempt was."""
