"""Killing a real daemon and looking at what is left."""
