"""The blobstore protocol of Cloud Foundry over the tree."""
