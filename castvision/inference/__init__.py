"""Using a model: loading it from a name, a checkpoint or a folder, predictions, pictures of its clusters, the demo.

Import what is needed from the modules: `castvision.inference.predictor` (`load_model`, `Predictor`),
`castvision.inference.pictures`
(overlays as arrays), `castvision.inference.figures` (titled figures; needs matplotlib).
"""
