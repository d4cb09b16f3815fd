"""Training with Lightning: tasks, data modules, callbacks, the command line. Nothing else imports Lightning."""
