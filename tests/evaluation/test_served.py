"""What a client gets for what it sends, against the predictor and plain decoding."""

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from true_checkpoint import write_true_checkpoint

from vitrail.checkpoint import CheckpointError
from vitrail.data.codec import decode_image
from vitrail.evaluation.predictor import Predictor
from vitrail.evaluation.served import Segmented, ServedImageError, ServedModel
from vitrail.evaluation.trained import open_model


def encoded(suffix: str, *shape: int) -> bytes:
    """An image file of the shape, of smooth noise."""
    noise = np.random.default_rng(sum(shape)).integers(0, 256, (5, 6, *shape[2:]), np.uint8)
    return cv2.imencode(suffix, cv2.resize(noise, (shape[1], shape[0])))[1].tobytes()


def label_map(segmented: Segmented) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(segmented.label_map_png), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def served(true_checkpoint: Path) -> ServedModel:
    return ServedModel.open(true_checkpoint)


@pytest.fixture(scope="module")
def predictor(true_checkpoint: Path) -> Predictor:
    model, described = open_model(true_checkpoint)
    return Predictor(model, described.recipe)


IMAGES = {
    "jpeg": encoded(".jpg", 60, 80, 3),
    "odd sizes": encoded(".png", 37, 131, 3),
    "one pixel": encoded(".png", 1, 1, 3),
    "grey": encoded(".png", 48, 33),
    "grey jpeg": encoded(".jpg", 48, 33),
    "with an alpha channel": encoded(".png", 50, 40, 4),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_label_map_is_that_of_the_predictor_in_raw_ids(served: ServedModel, predictor: Predictor, kind: str) -> None:
    pixels = decode_image(IMAGES[kind])
    train_ids = predictor(pixels)
    (answer,) = served.predict([IMAGES[kind]])
    assert (answer.height, answer.width) == pixels.shape[:2]
    np.testing.assert_array_equal(label_map(answer), train_ids + 1)
    assert label_map(answer).dtype == np.uint8
    counts = {f"class {index}": int((train_ids == index).sum()) for index in np.unique(train_ids)}
    assert json.loads(answer.class_pixels) == counts


def test_images_of_the_test_have_more_than_one_class(served: ServedModel) -> None:
    assert len(json.loads(served.predict([IMAGES["jpeg"]])[0].class_pixels)) > 1


def test_all_forms_of_an_image_give_the_same_answer(served: ServedModel) -> None:
    data = IMAGES["odd sizes"]
    pixels = decode_image(data)
    text = base64.b64encode(data).decode()
    in_lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    forms = [data, bytearray(data), memoryview(data), text, in_lines, pixels, pixels.tolist(), pixels[:, ::-1][:, ::-1]]
    assert len(set(served.predict(forms))) == 1


def test_answer_does_not_depend_on_what_else_was_asked(served: ServedModel) -> None:
    together = served.predict(list(IMAGES.values()))
    assert together == [served.predict([image])[0] for image in IMAGES.values()]
    assert served.predict([]) == []


def test_ids_beyond_255_take_16_bits(tmp_path: Path) -> None:
    served = ServedModel.open(write_true_checkpoint(tmp_path, classes=300, reduce_zero_label=False))
    (answer,) = served.predict([IMAGES["jpeg"]])
    labels = label_map(answer)
    assert labels.dtype == np.uint16
    names = {f"class {index}": int((labels == index).sum()) for index in np.unique(labels)}
    assert json.loads(answer.class_pixels) == names


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "not a JPEG or PNG that can be decoded"),
        (b"GIF89a of another kind", "not a JPEG or PNG that can be decoded"),
        (IMAGES["jpeg"][: len(IMAGES["jpeg"]) // 2], "not a JPEG or PNG that can be decoded: it cannot be read to its"),
        (base64.b64encode(b"plain text").decode(), "not a JPEG or PNG that can be decoded"),
        ("street.jpg", "not base64"),
        ("straße", "not base64"),
        (None, "type NoneType"),
        (float("nan"), "type float"),
        (np.zeros((4, 4), np.uint8), r"array \(4, 4\) of uint8"),
        (np.zeros((4, 4, 3), np.float32), r"array \(4, 4, 3\) of float32"),
        (np.zeros((0, 4, 3), np.uint8), r"array \(0, 4, 3\)"),
        ([[[0, 0, 256]]], r"array \(1, 1, 3\) of int64"),
        ([[[0, 0, 0]], [[0, 0]]], "rows differ in length"),
    ],
)
def test_bad_image_is_named_with_what_is_wrong(served: ServedModel, bad: object, reason: str) -> None:
    with pytest.raises(ServedImageError, match=f"^image 2 of 3 is .*{reason}.*; send the bytes of a JPEG or PNG"):
        served.predict([IMAGES["grey"], bad, IMAGES["grey"]])


def test_checkpoint_without_its_training_state_is_enough_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    folder = write_true_checkpoint(tmp_path)
    (folder / "state.pt").unlink()
    assert ServedModel.open(folder).predict([IMAGES["grey"]])
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed"):
        ServedModel.open(folder)
