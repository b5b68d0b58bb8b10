"""A step of SGD on weights whose gradients are those of the standardized weights."""
