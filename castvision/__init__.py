"""Vision transformers for images too large for full attention, for timm.

Importing the package registers its models: afterwards ``timm.create_model("cast_vit_small_patch16_224")`` works.
"""

import os

from castvision.deferred import deferred

__version__ = "0.1.0"

__all__ = ["__version__", "convert", "models", "revert"]

# Reading images and running exported models needs no torch: set CASTVISION_WITHOUT_TORCH=1 before the first import;
# what is named above is imported when it is asked for, then.
__getattr__ = deferred(__name__, {name: "castvision.models.convert" for name in ("convert", "revert")})
if "CASTVISION_WITHOUT_TORCH" not in os.environ:
    from castvision import models
    from castvision.models.convert import convert, revert
