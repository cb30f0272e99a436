"""mmsegmentation's training pipeline for ADE20K, timed where it is installed: run by another Python, not imported.

    PEER_PYTHON peer_pipeline.py FOLDER      FOLDER/images/training/*.jpg, FOLDER/annotations/training/*.png

Answers the request {"do": "count"} with the number of images, and {"do": "pass"} with seconds for all of them through
the published pipeline, decoding to packed crops (`pipeline`), and with its data preprocessor's normalising and stacking
in batches of two (`preprocessed`). Needs mmsegmentation 1.2, mmengine and mmcv or mmcv-lite.
"""

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.benchmark.answering import answer_requests, load_peer_config, stand_in_for_operators
else:
    from answering import answer_requests, load_peer_config, stand_in_for_operators


def build(folder: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The pipeline, the data preprocessor, and what the pipeline is given for each image."""
    stand_in_for_operators()
    import cv2
    import torch
    from mmengine.dataset import Compose
    from mmseg.registry import MODELS

    cv2.setNumThreads(0)  # as mmsegmentation's default_runtime.py does
    torch.set_num_threads(1)
    config = load_peer_config("vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py")
    images = sorted((folder / "images" / "training").glob("*.jpg"))
    infos: list[dict[str, Any]] = [
        {
            "img_path": str(image),
            "seg_map_path": str(folder / "annotations" / "training" / f"{image.stem}.png"),
            "reduce_zero_label": True,
            "seg_fields": [],
            "label_map": None,
        }
        for image in images
    ]
    return Compose(config.train_pipeline), MODELS.build(config.model.data_preprocessor), infos


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What answers requests about the images of the command line's folder."""
    pipeline, preprocessor, infos = build(Path(sys.argv[1]))
    from mmengine.dataset import pseudo_collate

    def crops() -> None:
        [pipeline(copy.copy(info)) for info in infos]

    def batches() -> None:
        for start in range(0, len(infos), 2):
            pair = [pipeline(copy.copy(info)) for info in infos[start : start + 2]]
            preprocessor(pseudo_collate(pair), training=True)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "count":
            return {"images": len(infos)}
        times: dict[str, Any] = {}
        for name, work in (("pipeline", crops), ("preprocessed", batches)):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            times[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return times

    return answer


if __name__ == "__main__":
    answer_requests(prepare)
