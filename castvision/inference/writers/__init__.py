"""Results as files: pyramidal TIFF, PNG, a preview, polygons. All read a `castvision.inference.sinks.FileSink` in parts."""
