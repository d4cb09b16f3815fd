"""Lightning modules: what is learned, and how."""
