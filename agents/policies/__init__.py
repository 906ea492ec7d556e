"""Policies that write text: a small decoder of ours, and language models."""
