"""GroupNorm, ReLU and the convolutions that read the result, as one operator."""
