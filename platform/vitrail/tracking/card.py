"""The model card: what a version's page in MLflow says, in Markdown."""

from collections.abc import Mapping

from vitrail.checkpoint import CheckpointInfo, ScoreRecord
from vitrail.tracking.model_folder import CARD

_GAP = "&emsp;"


def model_card(
    info: CheckpointInfo,
    *,
    name: str,
    weights_sha256: str,
    pictures: Mapping[str, str] | None = None,
    max_chars: int | None = None,
) -> str:
    """What the model is, how good it is, where it comes from and how to use it.

    Args:
        name: the registered model's.
        pictures: addresses of pictures, by their titles.
        max_chars: classes between the highest and the lowest IoU are left out until the card is no longer than this.
    """
    count = 0 if info.scores is None else len(info.classes)
    while True:
        sections = [
            _summary(info),
            _score_table(info),
            _origin(info, weights_sha256),
            _usage(name),
            "" if info.scores is None else _class_table(info.classes, info.scores, count),
            _gallery(pictures or {}),
        ]
        card = "\n\n".join(filter(None, sections)) + "\n"
        if max_chars is None or len(card) <= max_chars or count == 0:
            return card
        count = max(0, count - 2)


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


def _class_table(classes: tuple[str, ...], scores: ScoreRecord, count: int) -> str:
    """`count` rows: half of them from the top, half from the bottom."""
    by_iou = sorted(zip(classes, scores.iou, strict=True), key=lambda item: -(item[1] or 0.0))
    rows = [[label, "does not occur" if iou is None else f"{iou:.2%}"] for label, iou in by_iou]
    left_out = len(rows) - count
    if left_out:
        top = count // 2
        rows = [*rows[:top], [f"… {left_out} more in {CARD}", ""], *rows[top + left_out :]]
    return "### Classes\n\n" + _table(["class", "IoU"], rows)


def _gallery(pictures: Mapping[str, str]) -> str:
    if not pictures:
        return ""
    shown = "\n\n".join(f"{title}\n\n![{title}]({address})" for title, address in pictures.items())
    return f"### Validation images\n\n{shown}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; MLflow shows tables without any space between columns, so the cells bring their own."""
    lines = [header, [":---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell}{_GAP if cell != ':---' else ''}" for cell in line) + " |" for line in lines
    )


def _origin(info: CheckpointInfo, weights_sha256: str) -> str:
    recipe, place = info.recipe, f", in `{info.data.uri}`" if info.data.uri else ""
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items() if name != "code")
    return "\n".join(
        [
            "### Origin\n",
            f"- data: {info.data.name}, fingerprint `{info.data.fingerprint}`{place}",
            f"- started from: {_start(info)}",
            f"- training: {info.step:,} steps of {recipe.global_batch} images, crops of "
            f"{recipe.transforms.crop_size} pixels, peak learning rate {recipe.schedule.peak_lr:g}, seed {info.seed}",
            f"- recipe digest `{recipe.digest()}`, run `{info.run_key}`",
            f"- code: {info.versions.get('code', 'unknown')}{f' ({versions})' if versions else ''}",
            f"- weights: SHA-256 `{weights_sha256}`",
        ]
    )


def _start(info: CheckpointInfo) -> str:
    if info.start is None:
        return "random weights"
    return ", ".join(f"{key} {value}" for key, value in info.start.items())


def _usage(name: str) -> str:
    return f"""### Use

Anywhere, with what `requirements.txt` lists; `@champion` may be `/NUMBER`:

```
model = mlflow.pyfunc.load_model("models:/{name}@champion")
answer = model.predict({{"image": [open("street.jpg", "rb").read()]}})
label_map = base64.b64decode(answer["label_map_png"][0])   # a PNG
```

An image is the bytes of a JPEG or PNG, their base64 text, or an RGB array of uint8. As a server, with base64 in JSON:

```
mlflow models serve -m models:/{name}@champion --env-manager uv --port 5001
curl localhost:5001/invocations -H "Content-Type: application/json" \\
  -d "{{\\"dataframe_records\\": [{{\\"image\\": \\"$(base64 -w0 street.jpg)\\"}}]}}"
```

With this project:

```
uv run pipelines/predict.py models:/{name}@champion IMAGES OUT
uv run jobs/evaluate.py models:/{name}@champion --data DATA
```"""
