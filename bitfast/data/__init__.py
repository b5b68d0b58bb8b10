"""From a user's data to normalised batches: source, dataset, check, transform, sampler, loader (DALI or Pillow)."""
