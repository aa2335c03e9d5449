"""cafs: a content-addressed, deduplicating filesystem for blobstores."""

__version__ = "0.1.0"
