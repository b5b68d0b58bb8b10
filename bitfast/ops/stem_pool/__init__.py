"""Max-pool of the stem, over zero padding."""
