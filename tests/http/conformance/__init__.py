"""The blobstore's contract, case by case, against every server that claims to fulfil it."""
