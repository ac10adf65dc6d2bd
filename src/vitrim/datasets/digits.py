"""Sign-language digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets._archive import Archived, fake_archive
from vitrim.datasets.base import DATASETS


@DATASETS.register("sign_digits")
class SignDigits(Archived):
    """Sign Language Digits: hands that show 0 to 9, 2,062 photographs of 100 x 100 pixels (Mavi, arXiv:2011.08927).

    The split was drawn at random in each class: the origin names no persons, so that one may stand in two splits.

    Args:
        root: folder of ``labels.csv`` and ``images.tar``.
    """

    origin = (
        "the sign_digits folder beside the project (from https://github.com/ardamavi/Sign-Language-Digits-Dataset, Apache-2.0)"
    )
    expected: ClassVar = {"classes": 10, "train": 1342, "val": 202, "trainval": 1544, "test": 518}
    layout = """sign_digits/
  labels.csv    file,label,split,source_file
  images.tar    DIGIT/000.jpg, 100 x 100, uncompressed tar"""

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> SignDigits:
        fake_archive(root, list("0123"), 100, "file,label,split,source_file", "{file},{label},{split},fake_{number}.JPG")
        return cls(root=str(root), **settings)
