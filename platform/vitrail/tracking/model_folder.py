"""The names of what lies in a registered version's folder, and the list of its checksums. Needs nothing but Python."""

from pathlib import Path

from vitrail.checkpoint import INFO, CheckpointError

DATA = "data"
"""A checkpoint's folder without the training state."""
CODE = "code"
"""The sources that inference needs."""
CARD, PICTURES = "MODEL_CARD.md", "pictures"
SUMS = "SHA256SUMS"
"""Checksums of all other files, as `sha256sum -c` reads them."""


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums of the files of a version's folder, by their names in it.

    Raises:
        CheckpointError: there is no such list, or it leaves the description out.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except OSError as error:
        raise CheckpointError(str(folder), f"{SUMS} cannot be read ({error.strerror})") from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if f"{DATA}/{INFO}" not in sums:
        raise CheckpointError(str(folder), f"{SUMS} is damaged: it does not list {DATA}/{INFO}")
    return sums


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Write what `read_sums` reads."""
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
