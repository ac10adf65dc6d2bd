"""Sets whose images are numbers in memory, not encoded files."""

from __future__ import annotations

import io
from abc import abstractmethod

from PIL import Image

from vitrim.datasets.base import DataSet, Item


class PixelSet(DataSet):
    """A set that makes images of its items itself, in their own mode; encoded they are PNG."""

    @abstractmethod
    def image(self, item: Item) -> Image.Image:
        """The image as it is."""

    def raw(self, item: Item) -> bytes:
        content = io.BytesIO()
        self.image(item).save(content, "PNG")
        return content.getvalue()

    def read(self, item: Item) -> Image.Image:
        return self.image(item).convert("RGB")
