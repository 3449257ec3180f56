"""Images and their truth on disk, read as arrays."""
