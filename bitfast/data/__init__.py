"""From a user's folder to normalised batches: list (dataset), check, transform, sampler, loader (DALI or Pillow)."""
