"""What training starts from: weights in a file, here or in an object store, or timm's of a name."""

from dataclasses import replace

from vitrail.models.segmentor import Segmentor
from vitrail.models.weights import Coverage, load_pretrained
from vitrail.stored_file import fetch_file, is_stored


def load_start(model: Segmentor, source: str) -> Coverage:
    """`load_pretrained`, also from `s3://` or `gs://`: a file is fetched once for all processes of a machine.

    Raises:
        UsageError: the store does not have the file, or cannot be reached.
    """
    if not is_stored(source):
        return load_pretrained(model, source)
    return replace(load_pretrained(model, str(fetch_file(source))), source=source)
