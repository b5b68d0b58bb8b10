"""Weight standardization of many tensors in one call."""
