"""From a folder of images and masks to shards, and from shards to batches of numpy arrays."""
