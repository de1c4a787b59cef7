"""Named public datasets, fetched once and checked against their SHA-256."""

from __future__ import annotations

from pathlib import Path

import pooch

from vqdistill.errors import VqdistillError

_SOURCE = "http://ann-benchmarks.com/"
KNOWN = {
    "sift-128-euclidean": "dd6f0a6ed6b7ebb8934680f861a33ed01ff33991eaee4fd60914d854a0ca5984",
    "glove-100-angular": "544af1d5e84e112cd4749571dcfd8ca109818a572f850af75a3a09e093a953c4",
    "deep-image-96-angular": "a0a44dfe80c58e63860862eeea2d34e62cff958dc3aec14fd65263d1d3c751f8",
}
"""Name -> SHA-256 of its HDF5 file, as TensorFlow Datasets has it in its lists of checksums."""


def fetch(name: str) -> Path:
    """Return the file of a named dataset, downloaded to the user's cache unless it is there.

    Raises
    ------
    VqdistillError
        If it can be neither found nor downloaded, or is not the file of that checksum.
    """
    file = f"{name}.hdf5"
    store = pooch.create(pooch.os_cache("vqdistill"), _SOURCE, registry={file: f"sha256:{KNOWN[name]}"})
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(store.fetch(file))
    except ValueError as error:
        raise VqdistillError(f"{_SOURCE}{file} is not the file that its checksum is of: {error}") from None
    except OSError as error:  # requests' own errors are OSErrors too
        raise VqdistillError(
            f"{name} cannot be downloaded from {_SOURCE}{file} ({type(error).__name__}); without a network put the file"
            f" into {store.path}"
        ) from None
