"""Policies: transforms, backbone and head, and how they are saved."""
