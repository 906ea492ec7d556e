"""Actors on feature vectors: one law over chunks each, behind one protocol (vla/rl/interfaces.py)."""
