"""Training with Lightning: tasks, data modules, callbacks and the command line. The only place that imports Lightning."""
