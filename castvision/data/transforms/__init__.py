"""From arrays to a model's tensors, and what augments them on the way."""
