"""Results as files, written part by part from a `castvision.inference.sinks.FileSink`."""
