"""MATLAB files of the older sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitrim.datasets.base import DataError


def read(path: Path, *names: str) -> list[list[Any]]:
    """Variables of a MATLAB file as flat lists; cells and one-element arrays are unpacked, structs become records.

    Raises:
        DataError: when the file is damaged or a variable is missing.
    """
    # SciPy takes a tenth of a second to import; only four sets need it.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: Mapping[str, Any] = loadmat(str(path), squeeze_me=True)
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError, EOFError) as error:
        raise DataError(f"'{path}' is no readable MATLAB file ({error}); obtain it again") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise DataError(f"'{path}' holds no variable '{missing[0]}'; obtain it again")
    found = [np.atleast_1d(content[name]) for name in names]
    # Structs stay records, whose fields are read by name; their tolist would be tuples.
    return [list(array) if array.dtype.names else array.tolist() for array in found]
