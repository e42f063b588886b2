"""How numpy is built inside, as far as pickles of arrays show it."""

from __future__ import annotations

from typing import Any

import numpy as np


def array_pickle_names() -> dict[tuple[str, str], Any]:
    """What a pickle of an array may ask for, by module and name; nothing of it runs code of the pickle.

    Relies on `numpy.ndarray.__reduce__` giving the function that is called `_reconstruct` in a pickle (2.1 to 2.4),
    of the module "numpy.core.multiarray" where numpy 1 wrote it and of "numpy._core.multiarray" since.
    """
    reconstruct = np.empty(0, np.uint8).__reduce__()[0]
    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
