"""The model card: what a version's page in MLflow says, in Markdown."""

from vitrail.checkpoint import CheckpointInfo, ScoreRecord


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
    rows = [
        "| | mIoU | mAcc | aAcc | validation images |",
        "|---|---|---|---|---|",
        f"| this version | {scores.mIoU:.2%} | {scores.mAcc:.2%} | {scores.aAcc:.2%} | {images} |",
    ]
    if published is not None:
        rows.append(f"| published (mmsegmentation, ADE20K) | {published.miou:.2f}% | | | 2000 |")
    return "\n".join(rows)


def _class_table(classes: tuple[str, ...], scores: ScoreRecord) -> str:
    rows = ["| class | IoU |", "|---|---|"]
    for label, iou in sorted(zip(classes, scores.iou, strict=True), key=lambda item: -(item[1] or 0.0)):
        rows.append(f"| {label} | {'does not occur' if iou is None else f'{iou:.2%}'} |")
    return "\n".join(rows)


def _origin(info: CheckpointInfo, weights_sha256: str) -> str:
    return "\n".join(
        [
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
        "Use it:\n\n"
        "```\n"
        f"uv run pipelines/predict.py models:/{name}@champion IMAGES OUT\n"
        f"uv run jobs/evaluate.py models:/{name}@champion --data DATA\n"
        "```"
    )
