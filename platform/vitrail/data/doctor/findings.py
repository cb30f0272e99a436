"""What the doctor can find in a data set, as data: how bad it is, what it means, and the way out."""

from typing import Literal

from vitrail.strict import Strict

Severity = Literal["error", "warning", "note"]


class Kind(Strict):
    """A kind of finding. Errors would corrupt training, warnings may, notes are good to know."""

    name: str
    severity: Severity
    meaning: str
    way_out: str


class SampleRef(Strict):
    """A sample by its place in the sorted split, and what to call it: its image's file, or SPLIT/ID in shards."""

    split: str
    index: int
    path: str


class Finding(Strict):
    """One thing found: which file or class, what about it, and the samples that show it."""

    kind: str
    path: str
    detail: str
    samples: tuple[SampleRef, ...] = ()

    def __str__(self) -> str:
        return f"{self.path} {self.detail}"


_TABLE: tuple[tuple[Severity, str, str, str], ...] = (
    (
        "error",
        "unreadable_image",
        "An image that is truncated, no image at all, or cannot be opened; some readers fill the rest with grey.",
        "Fetch the file again from where it came, or leave it out with pipelines/prepare.py --on-error skip.",
    ),
    (
        "error",
        "unreadable_mask",
        "A mask that is truncated, no image at all, or cannot be opened.",
        "Fetch the file again from where it came, or leave it out with pipelines/prepare.py --on-error skip.",
    ),
    (
        "error",
        "colour_mask",
        "A mask that holds colours in place of class ids.",
        "Write masks as grey or palette PNGs whose values are the ids of classes.csv.",
    ),
    (
        "error",
        "size_mismatch",
        "A mask of another size than its image, so that no pixel's label is certain.",
        "Export the mask again at the image's size (nearest neighbour), after applying the image's EXIF rotation.",
    ),
    (
        "error",
        "id_out_of_range",
        "A mask with values that no class has.",
        "Add the missing classes to classes.csv, or map these values to a class, or to 255 where they mean nothing.",
    ),
    ("error", "no_mask", "An image without a mask.", "Add the mask, or move the image out of the folder."),
    (
        "error",
        "same_name",
        "Two images that share one mask because their names differ only in the suffix.",
        "Rename one of them together with its own mask, or delete it.",
    ),
    (
        "error",
        "leak",
        "The same image, pixel for pixel, in more than one split: validation figures would be too good.",
        "Take it out of the training split.",
    ),
    (
        "error",
        "contradiction",
        "The same image, pixel for pixel, with different masks.",
        "Keep the pair whose mask is right and delete the others.",
    ),
    (
        "error",
        "damaged_shard",
        "Bytes of a prepared data set that are not those that were written.",
        "Run pipelines/prepare.py again on the source, with --overwrite.",
    ),
    (
        "error",
        "manifest_mismatch",
        "The samples are not what the manifest says of them.",
        "Run pipelines/prepare.py again on the source, with --overwrite.",
    ),
    (
        "warning",
        "zero_label",
        "Raw id 0 looks otherwise than it is read.",
        "Start classes.csv at 0 where 0 is a class, at 1 where 0 means unlabelled.",
    ),
    (
        "warning",
        "near_leak",
        "Images of different splits that look alike: frames of one video, or the same picture edited.",
        "Look at the pairs; put what was taken together into one split.",
    ),
    (
        "warning",
        "duplicate",
        "The same image, pixel for pixel, more than once in one split: it weighs more than the others.",
        "Keep one of them.",
    ),
    (
        "warning",
        "exif_rotation",
        "An image that is stored turned, with the turn in its EXIF data; vitrail applies it, other tools may not.",
        "Nothing if the mask fits what you see below; else turn the pixels once and for all and drop the EXIF data.",
    ),
    (
        "warning",
        "grey_image",
        "A grey image; its three channels will be equal.",
        "Nothing if it is meant so; a colour original is better for weights learnt on colour images.",
    ),
    (
        "warning",
        "cmyk_image",
        "An image in printing colours; the conversion to RGB is rough and some files come out inverted.",
        "Convert it to RGB with its colour profile.",
    ),
    (
        "warning",
        "unusual_mode",
        "An image with transparency, a palette or more than 8 bits, which is cut down to 8-bit RGB.",
        "Convert it to 8-bit RGB yourself where the difference matters.",
    ),
    (
        "warning",
        "tiny_image",
        "An image whose shorter side is below 32 pixels, two patches of the backbone.",
        "Delete it if it is an icon or a thumbnail.",
    ),
    (
        "warning",
        "unlabelled_mask",
        "A mask in which every pixel is ignored: the sample costs time and teaches nothing.",
        "Label it, or leave it out.",
    ),
    (
        "warning",
        "class_never_seen",
        "A class that no pixel has, in any split.",
        "Take it out of classes.csv, or look why it is missing; it would count for nothing but take part in the head.",
    ),
    (
        "warning",
        "class_not_trained",
        "A class that is in validation but not in training: it cannot be learnt and pulls mIoU down.",
        "Move samples that have it to training.",
    ),
    (
        "warning",
        "class_not_validated",
        "A class that is in training but not in validation: no figure will tell how well it is learnt.",
        "Move samples that have it to validation.",
    ),
    (
        "warning",
        "missing_split",
        "A split without samples.",
        "Training needs both training and validation; evaluation needs validation alone.",
    ),
    ("warning", "mask_without_image", "A mask without an image.", "Add the image, or delete the mask."),
    (
        "note",
        "near_duplicate",
        "Images of one split that look alike, as frames of a video do; they teach less than their number says.",
        "Nothing, unless they are copies that were only resized or saved again.",
    ),
    (
        "note",
        "palette_mask",
        "A mask with a palette; its indices are read as ids and its colours are not looked at.",
        "Nothing, if the indices are the ids of classes.csv.",
    ),
    (
        "note",
        "classes_assumed",
        "There is no classes.csv, so the classes are taken to be ADE20K's 150.",
        "Nothing if this is ADE20K; else write classes.csv (index,name[,red,green,blue]) beside images/.",
    ),
    (
        "note",
        "left_out",
        "A file that was left out when the data set was prepared.",
        "Run the doctor on the source to see why.",
    ),
)

KINDS: dict[str, Kind] = {
    name: Kind(name=name, severity=severity, meaning=meaning, way_out=way_out)
    for severity, name, meaning, way_out in _TABLE
}
"""Every kind by its name, the worst first."""
