"""Measures a cafs mount against plain ext4, on real input, in one run.

Nothing in cafs imports this package; it uses cafs only as a user does, by its commands.
"""
