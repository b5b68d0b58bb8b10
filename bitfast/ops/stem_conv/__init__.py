"""The convolution of the stem."""
