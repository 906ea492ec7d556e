"""Losses as pure functions of predictions, targets, masks and weights, for robot policies and language models alike."""
