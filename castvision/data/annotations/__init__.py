"""What annotation tools write, as masks: LabelMe, CVAT, Label Studio."""

from castvision.data.annotations.converting import Conversion, convert_annotations

__all__ = ["Conversion", "convert_annotations"]
