"""The loop that every recipe shares."""
