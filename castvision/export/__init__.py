"""Trained models in the formats of others: folders in timm's layout, programs of torch, ONNX; and onto a hub."""
