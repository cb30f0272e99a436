"""What MLflow calls in a registered version: its folder in, a model that takes and returns DataFrames out.

Travels inside the version with `vitrail.evaluation.served`, under another package name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException

from vitrail.checkpoint import check_files
from vitrail.evaluation.served import ServedImageError, ServedModel
from vitrail.tracking.model_folder import CODE, DATA, read_sums

COLUMN = "image"


def _load_pyfunc(path: str) -> "PyfuncModel":
    """The model of a version's folder, its weights, description and sources checked; MLflow knows it by this name."""
    folder = Path(path)
    sums = read_sums(folder)
    check_files(folder, {name: digest for name, digest in sums.items() if name.startswith((f"{DATA}/", f"{CODE}/"))})
    return PyfuncModel(ServedModel.open(folder / DATA))


class PyfuncModel:
    """One row of the answer per image in the column `image`."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Columns as in `Segmented`.

        Raises:
            MlflowException: an image that cannot be read. A server answers with 400 and this message, where any other
                exception would become "unexpected error".
        """
        images = list(_images(model_input[COLUMN]))
        try:
            segmented = self.served.predict(images)
        except ServedImageError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        index = model_input.index if len(images) == len(model_input) else None
        return pd.DataFrame([asdict(each) for each in segmented], index=index)


def _images(column: Iterable[Any]) -> Iterator[Any]:
    """The cells, and what is in those that hold a list of texts: MLflow makes one row of `{"image": [text, text]}`."""
    for cell in column:
        if isinstance(cell, list) and cell and isinstance(cell[0], str):
            yield from cell
        else:
            yield cell
