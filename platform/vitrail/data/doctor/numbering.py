"""Judges whether raw id 0 of a data set's masks is "unlabelled", as ADE20K has it, or a class like the others."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from vitrail.data.doctor.inspection import Record
from vitrail.strict import Strict

_VOID_NAMES = {
    "unlabelled",
    "unlabeled",
    "void",
    "ignore",
    "ignored",
    "other",
    "others",
    "none",
    "unknown",
    "undefined",
}
_MUCH = 0.5  # share of pixels that are ignored, above which 0 is rather a background class

Meaning = Literal["unlabelled", "class"]


class ZeroLabel(Strict):
    """How raw id 0 is read, what it looks like, and why."""

    read_as: Meaning
    looks_like: Meaning | Literal["unclear"]
    pixel_share: float
    """Of all mask pixels."""
    masks: int
    """Masks that have it."""
    evidence: tuple[str, ...]

    @property
    def is_doubtful(self) -> bool:
        """Whether it looks otherwise than it is read."""
        return self.looks_like not in (self.read_as, "unclear")


def judge_zero(records: Sequence[Record], *, names: Sequence[str], first: int, source: str) -> ZeroLabel | None:
    """What raw id 0 is in the masks of `records`, whose classes count from `first`; None without a readable mask."""
    pixels: Counter[int] = Counter()
    for record in records:
        pixels.update(record.id_pixels)
    total = sum(pixels.values())
    if not total:
        return None
    masks, readable = sum(0 in r.id_pixels for r in records), sum(bool(r.id_pixels) for r in records)
    share = pixels[0] / total
    where = f"fills {share:.1%} of all pixels and is in {masks} of {readable} masks" if pixels[0] else "never occurs"
    read_as: Meaning = "unlabelled" if first == 1 else "class"
    looks_like, why = _judge_unlabelled(pixels, share, len(names)) if first == 1 else _judge_class(pixels, names)
    start = f"{source}; so classes are {first} to {len(names) - 1 + first}, and raw 0 is read as " + (
        "unlabelled" if first == 1 else f"class {names[0]!r}"
    )
    return ZeroLabel(
        read_as=read_as,
        looks_like=looks_like,
        pixel_share=share,
        masks=masks,
        evidence=(start, f"raw 0 {where}", *why),
    )


def _judge_unlabelled(
    pixels: Counter[int], share: float, num_classes: int
) -> tuple[Meaning | Literal["unclear"], list[str]]:
    """Classes are read as 1..K."""
    highest = max((value for value in pixels if 0 < value <= num_classes), default=0)
    if pixels[num_classes]:
        why = [f"raw {num_classes} occurs, the last id of classes that count from 1"]
        if share > _MUCH:
            why.append("more than half of all pixels would be ignored: look whether 0 is a background class")
            return "unclear", why
        return "unlabelled", why
    why = [f"raw {num_classes} never occurs; the highest id is {highest}"]
    if highest == num_classes - 1 and share * num_classes > _MUCH:
        why.append("that is what masks look like whose classes count from 0, and 0 is as frequent as a class")
        return "class", why
    return "unclear", why


def _judge_class(pixels: Counter[int], names: Sequence[str]) -> tuple[Meaning | Literal["unclear"], list[str]]:
    """Classes are read as 0..K-1."""
    if names[0].strip().lower() in _VOID_NAMES:
        return "unlabelled", [f"class 0 is called {names[0]!r}, which will be learnt like any other class"]
    if pixels[len(names)]:
        return "unlabelled", [f"raw {len(names)} occurs, one more than the last class: the masks may count from 1"]
    if pixels[len(names) - 1]:
        return "class", [f"raw {len(names) - 1} occurs and raw {len(names)} does not, as in classes that count from 0"]
    highest = max((value for value in pixels if value < len(names)), default=0)
    return "unclear", [f"raw {len(names) - 1} never occurs; the highest id is {highest}"]
