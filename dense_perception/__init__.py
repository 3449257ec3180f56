"""Dense labels and optical flow from camera streams."""
