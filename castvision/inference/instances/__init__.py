"""Single objects: from the classes of pixels, or from centres and offsets, in maps of any size, without seams."""
