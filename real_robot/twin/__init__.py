"""Wire-level twins of servo buses: what answers at the other end of the cable when there is no arm.

Written from the protocol's description, not from the drivers' codec, so that a misreading cannot hide in both.
"""
