"""Clustered beside full attention on pretrained weights: distances of features, and what heads make of them.

settings      what is compared: ways to run a ViT on a large image
features      a model under a setting, and its features of an image
photographs   images to measure on
distances     of features from full attention's
main          ``castvision benchmark fidelity``: rows of a JSON, resumable
report        its table and picture
heads         ``castvision benchmark heads``: segmentation heads, and the saliency decoder in ``saliency``
"""
