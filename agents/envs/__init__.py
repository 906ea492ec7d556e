"""Worlds of text, deterministic by seed, with snapshots."""
