"""The model card: what a version's page in MLflow says, in Markdown."""

from vitrail.checkpoint import CheckpointInfo, ScoreRecord

_GAP = "&emsp;"


def model_card(info: CheckpointInfo, *, name: str, weights_sha256: str) -> str:
    """What the model is, how good it is, where it comes from and how to use it."""
    sections = [_summary(info), _score_table(info), _origin(info, weights_sha256), _usage(name)]
    if info.scores is not None:
        sections.insert(2, _class_table(info.classes, info.scores))
    return "\n\n".join(sections) + "\n"


def _summary(info: CheckpointInfo) -> str:
    return (
        f"**{info.recipe.name}** at step {info.step:,} of {info.recipe.total_steps:,}: "
        f"semantic segmentation into {len(info.classes)} classes, trained on {info.data.name}."
    )


def _score_table(info: CheckpointInfo) -> str:
    if info.scores is None:
        return "Not validated."
    scores, published = info.scores, info.recipe.published
    images = f"{scores.images} of {info.data.val_images}"
    rows = [["this version", f"{scores.mIoU:.2%}", f"{scores.mAcc:.2%}", f"{scores.aAcc:.2%}", images]]
    if published is not None:
        rows.append(["published by mmsegmentation, on ADE20K", f"{published.miou:.2f}%", "", "", "2000 of 2000"])
    return "### Scores\n\n" + _table(["", "mIoU", "mAcc", "aAcc", "validation images"], rows)


def _class_table(classes: tuple[str, ...], scores: ScoreRecord) -> str:
    by_iou = sorted(zip(classes, scores.iou, strict=True), key=lambda item: -(item[1] or 0.0))
    rows = [[label, "does not occur" if iou is None else f"{iou:.2%}"] for label, iou in by_iou]
    return "### Classes\n\n" + _table(["class", "IoU"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; MLflow shows tables without any space between columns, so the cells bring their own."""
    lines = [header, [":---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell}{_GAP if cell != ':---' else ''}" for cell in line) + " |" for line in lines
    )


def _origin(info: CheckpointInfo, weights_sha256: str) -> str:
    return "\n".join(
        [
            "### Origin\n",
            f"- data: {info.data.name}, fingerprint `{info.data.fingerprint}`",
            f"- started from: {_start(info)}",
            f"- recipe digest `{info.recipe.digest()}`, seed {info.seed}, run `{info.run_key}`",
            f"- weights: SHA-256 `{weights_sha256}`",
        ]
    )


def _start(info: CheckpointInfo) -> str:
    if info.start is None:
        return "random weights"
    return ", ".join(f"{key} {value}" for key, value in info.start.items())


def _usage(name: str) -> str:
    return (
        "### Use\n\n"
        "```\n"
        f"uv run pipelines/predict.py models:/{name}@champion IMAGES OUT\n"
        f"uv run jobs/evaluate.py models:/{name}@champion --data DATA\n"
        "```"
    )
