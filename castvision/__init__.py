"""Vision transformers whose attention works inside learned clusters of tokens, for timm.

Importing the package registers its models: afterwards ``timm.create_model("cast_vit_small_patch16_224")`` works.
"""

from castvision import models as models

__version__ = "0.1.0"

__all__ = ["__version__"]
