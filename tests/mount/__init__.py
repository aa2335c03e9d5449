"""Conformance of the mount, held against a plain directory of the machine."""
