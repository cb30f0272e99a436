"""Makes a diagnosis of records: which findings there are and how many, what the splits hold, and how bad it is.

    diagnosis = diagnose(Subject.of_layout(layout), records)
    diagnosis.count("error"), diagnosis.splits["training"].class_pixels

The driver holds records only, so 22,000 images take some tens of megabytes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from vitrail.config import IGNORE_INDEX
from vitrail.data.doctor.duplicates import find_duplicates
from vitrail.data.doctor.findings import KINDS, Finding, Kind, Severity
from vitrail.data.doctor.inspection import TINY_SIDE, IdRange, Record
from vitrail.data.doctor.numbering import ZeroLabel, judge_zero
from vitrail.data.layout import SPLITS, Classes, Colour, Layout
from vitrail.data.manifest import Fault, Manifest
from vitrail.data.storage import Folder
from vitrail.strict import Strict

_LISTED = 500
_COMMON_SIZES = 8


class Subject(Strict):
    """What is examined: a source folder, or a prepared data set."""

    place: str
    name: str
    is_prepared: bool
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    class_source: str
    raw_offset: int
    """Id of the first class in the masks; those of a prepared data set hold train ids, so 0."""
    splits: dict[str, int]
    """Samples of each."""

    @classmethod
    def of_layout(cls, layout: Layout) -> Self:
        """A source folder."""
        return cls(
            place=str(layout.folder),
            name=layout.folder.name,
            is_prepared=False,
            classes=layout.classes.names,
            palette=layout.classes.palette,
            class_source=_class_source(layout.classes),
            raw_offset=layout.classes.raw_offset,
            splits={name: len(pairs) for name, pairs in layout.splits.items()},
        )

    @classmethod
    def of_manifest(cls, folder: Folder, manifest: Manifest) -> Self:
        """A prepared data set."""
        return cls(
            place=str(folder),
            name=manifest.name,
            is_prepared=True,
            classes=manifest.classes,
            palette=manifest.palette,
            class_source="manifest.json",
            raw_offset=0,
            splits={name: split.num_samples for name, split in manifest.splits.items()},
        )

    @property
    def ids(self) -> IdRange:
        """Ids of the classes in the masks."""
        return IdRange(self.raw_offset, self.raw_offset + len(self.classes) - 1)


class Sizes(Strict):
    """How large images are, in pixels."""

    min_width_height: tuple[int, int]
    median_width_height: tuple[float, float]
    max_width_height: tuple[int, int]
    common: tuple[tuple[int, int, int], ...]
    """(width, height, images) of the most frequent sizes, the most frequent first."""
    distinct: int
    tiny: int


class SplitSummary(Strict):
    """What a split holds, as far as it can be read."""

    samples: int
    readable: int
    class_pixels: tuple[int, ...]
    class_images: tuple[int, ...]
    ignored_pixels: int
    sizes: Sizes | None


class FindingGroup(Strict):
    """All findings of one kind; the first of them are listed."""

    kind: Kind
    count: int
    listed: tuple[Finding, ...]


class Diagnosis(Strict):
    """What the doctor says of a data set; this is `report.json`."""

    subject: Subject
    groups: tuple[FindingGroup, ...]
    splits: dict[str, SplitSummary]
    zero_label: ZeroLabel | None
    all_sizes: tuple[tuple[int, int, int], ...]
    """(width, height, images) of every size."""

    def count(self, severity: Severity) -> int:
        """Findings of that severity."""
        return sum(group.count for group in self.groups if group.kind.severity == severity)

    def group(self, kind: str) -> FindingGroup | None:
        """The findings of a kind, None where there are none."""
        return next((group for group in self.groups if group.kind.name == kind), None)


def diagnose(
    subject: Subject, records: Iterable[Record], *, faults: Sequence[Fault] = (), manifest: Manifest | None = None
) -> Diagnosis:
    """The diagnosis of all records of a data set.

    Args:
        faults: what the layout found (`Layout.faults`), or what a prepared data set was made without.
        manifest: of a prepared data set, to be compared with its samples.
    """
    records = sorted(records, key=lambda record: (record.ref.split, record.ref.index))
    splits = {name: _summary([r for r in records if r.ref.split == name], subject, name) for name in subject.splits}
    zero = None
    if not subject.is_prepared:
        zero = judge_zero(records, names=subject.classes, first=subject.raw_offset, source=subject.class_source)
    findings = [finding for record in records for finding in record.findings]
    findings += _fault_findings(faults, subject)
    findings += find_duplicates(records)
    findings += _class_findings(subject, splits)
    findings += _split_findings(subject, zero)
    findings += _manifest_findings(manifest, splits) if manifest else []
    sizes = _count_sizes(records)
    return Diagnosis(
        subject=subject,
        groups=_grouped(findings),
        splits=splits,
        zero_label=zero,
        all_sizes=tuple((*size, count) for size, count in sizes.most_common()),
    )


def _class_source(classes: Classes) -> str:
    return f"classes.csv starts at {classes.raw_offset}" if classes.source == "classes.csv" else classes.source


def _grouped(findings: Sequence[Finding]) -> tuple[FindingGroup, ...]:
    by_kind: dict[str, list[Finding]] = {name: [] for name in KINDS}
    for finding in findings:
        by_kind[finding.kind].append(finding)
    return tuple(
        FindingGroup(kind=KINDS[name], count=len(found), listed=tuple(found[:_LISTED]))
        for name, found in by_kind.items()
        if found
    )


def _summary(records: Sequence[Record], subject: Subject, split: str) -> SplitSummary:
    ids = subject.ids
    pixels, images = np.zeros(len(subject.classes), np.int64), np.zeros(len(subject.classes), np.int64)
    ignored = 0
    for record in records:
        for value, count in record.id_pixels.items():
            if value == IGNORE_INDEX or value < ids.first:
                ignored += count
            elif value <= ids.last:
                pixels[value - ids.first] += count
                images[value - ids.first] += 1
    return SplitSummary(
        samples=subject.splits[split],
        readable=sum(record.size is not None and bool(record.id_pixels) for record in records),
        class_pixels=tuple(pixels.tolist()),
        class_images=tuple(images.tolist()),
        ignored_pixels=ignored,
        sizes=_sizes(_count_sizes(records)),
    )


def _count_sizes(records: Sequence[Record]) -> Counter[tuple[int, int]]:
    """Images of each (width, height)."""
    return Counter(record.size[::-1] for record in records if record.size is not None)


def _sizes(counts: Counter[tuple[int, int]]) -> Sizes | None:
    if not counts:
        return None
    all_sizes = np.array(list(counts.elements()))
    low, middle, high = all_sizes.min(axis=0), np.median(all_sizes, axis=0), all_sizes.max(axis=0)
    return Sizes(
        min_width_height=(int(low[0]), int(low[1])),
        median_width_height=(float(middle[0]), float(middle[1])),
        max_width_height=(int(high[0]), int(high[1])),
        common=tuple((*size, count) for size, count in counts.most_common(_COMMON_SIZES)),
        distinct=len(counts),
        tiny=sum(count for size, count in counts.items() if min(size) < TINY_SIDE),
    )


def _fault_findings(faults: Sequence[Fault], subject: Subject) -> list[Finding]:
    return [
        Finding(kind="left_out" if subject.is_prepared else _fault_kind(fault), path=fault.path, detail=fault.reason)
        for fault in faults
    ]


def _fault_kind(fault: Fault) -> str:
    if fault.path.startswith("annotations/"):
        return "mask_without_image"
    return "no_mask" if fault.reason.startswith("has no ") else "same_name"


def _class_findings(subject: Subject, splits: dict[str, SplitSummary]) -> list[Finding]:
    """Classes that are missing everywhere, or on one side of training and validation."""
    seen = {name: split.class_images for name, split in splits.items() if split.readable}
    if not seen:
        return []
    both = all(name in seen for name in SPLITS)
    found = []
    for index, name in enumerate(subject.classes):
        path = f"class {index + subject.raw_offset} {name!r}"
        images = {split: counts[index] for split, counts in seen.items()}
        if not any(images.values()):
            found.append(Finding(kind="class_never_seen", path=path, detail="has no pixel"))
        elif both and not images["training"]:
            detail = f"is in {images['validation']} validation masks and in none of training"
            found.append(Finding(kind="class_not_trained", path=path, detail=detail))
        elif both and not images["validation"]:
            detail = f"is in {images['training']} training masks and in none of validation"
            found.append(Finding(kind="class_not_validated", path=path, detail=detail))
    return found


def _split_findings(subject: Subject, zero: ZeroLabel | None) -> list[Finding]:
    found = [
        Finding(kind="missing_split", path=name, detail="has no sample with a mask")
        for name in SPLITS
        if not subject.splits.get(name)
    ]
    if zero is not None and zero.is_doubtful:
        detail = f"is read as {zero.read_as} and looks like {zero.looks_like}: {'; '.join(zero.evidence[1:])}"
        found.append(Finding(kind="zero_label", path="raw id 0", detail=detail))
    if "assumed" in subject.class_source:
        found.append(Finding(kind="classes_assumed", path="classes.csv", detail="is not there"))
    return found


def _manifest_findings(manifest: Manifest, splits: dict[str, SplitSummary]) -> list[Finding]:
    found = []
    for name, split in manifest.splits.items():
        have = splits[name]
        for what, stated, counted in (
            ("samples", split.num_samples, have.readable),
            ("ignored pixels", split.ignored_pixels, have.ignored_pixels),
            ("labelled pixels", sum(split.class_pixels), sum(have.class_pixels)),
        ):
            if stated != counted:
                detail = f"has {counted:,} {what} that can be read, and manifest.json says {stated:,}"
                found.append(Finding(kind="manifest_mismatch", path=name, detail=detail))
        wrong = [n for n, (a, b) in enumerate(zip(split.class_pixels, have.class_pixels, strict=True)) if a != b]
        if wrong and sum(split.class_pixels) == sum(have.class_pixels):
            detail = f"has other pixel counts than manifest.json says for {len(wrong)} classes, the first {wrong[0]}"
            found.append(Finding(kind="manifest_mismatch", path=name, detail=detail))
    return found
