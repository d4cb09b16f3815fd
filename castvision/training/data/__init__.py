"""Lightning data modules: what to train on, what to hold out."""
