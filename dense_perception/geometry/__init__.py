"""What labels and flow say about the space around the camera."""
