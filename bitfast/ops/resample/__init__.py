"""Windows of resized images, normalised."""
