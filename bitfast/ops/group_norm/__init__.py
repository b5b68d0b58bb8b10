"""GroupNorm with activation and an optional residual input."""
