"""Small changes to large models: pools and mixtures of LoRA, merging, editing, and guidance between two models."""
