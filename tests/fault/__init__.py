"""Disks that fail or forget on purpose, and what cafs does on them."""
