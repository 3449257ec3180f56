"""From an image array to an array of labels or flow."""
