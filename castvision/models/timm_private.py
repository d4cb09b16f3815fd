"""The private parts of timm that a model outside timm cannot do without, in one place."""

from timm.models._features import FeatureGetterNet, FeatureInfo, feature_take_indices

__all__ = ["FeatureGetterNet", "FeatureInfo", "feature_take_indices"]
