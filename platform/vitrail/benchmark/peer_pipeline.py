"""mmsegmentation's training pipeline for ADE20K, timed where it is installed: run by another Python, not imported.

    PEER_PYTHON peer_pipeline.py FOLDER      FOLDER/images/training/*.jpg, FOLDER/annotations/training/*.png

Answers each line on its input with one of JSON: seconds for all images through the published pipeline, decoding to
packed crops (`pipeline`), and with its data preprocessor's normalising and stacking in batches of two (`preprocessed`).
Needs mmsegmentation 1.2, mmengine and mmcv or mmcv-lite; of the latter the compiled operators are missing, which
nothing here calls.
"""

import copy
import importlib.machinery
import json
import os
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any


class _Missing(types.ModuleType):
    """Stands in for mmcv's compiled operators while mmseg is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f"mmcv-lite has no operator {name}")

        return refuse


def build(folder: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The pipeline, the data preprocessor, and what the pipeline is given for each image."""
    try:
        import mmcv._ext  # noqa: F401
    except ImportError:
        stub = _Missing("mmcv._ext")
        stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = stub
    import cv2
    import mmseg
    import mmseg.datasets
    import mmseg.models
    import torch
    from mmengine.config import Config
    from mmengine.dataset import Compose
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    cv2.setNumThreads(0)  # as mmsegmentation's default_runtime.py does
    torch.set_num_threads(1)
    init_default_scope("mmseg")
    configs = Path(mmseg.__file__).parent / ".mim" / "configs" / "vit"
    config = Config.fromfile(str(configs / "vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py"))
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


def main() -> None:
    """Answer requests until the input ends."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    pipeline, preprocessor, infos = build(Path(sys.argv[1]))
    from mmengine.dataset import pseudo_collate

    def crops() -> None:
        [pipeline(copy.copy(info)) for info in infos]

    def batches() -> None:
        for start in range(0, len(infos), 2):
            pair = [pipeline(copy.copy(info)) for info in infos[start : start + 2]]
            preprocessor(pseudo_collate(pair), training=True)

    print(json.dumps({"images": len(infos)}), file=answers, flush=True)
    for _ in sys.stdin:
        times: dict[str, Any] = {}
        for name, work in (("pipeline", crops), ("preprocessed", batches)):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            times[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(json.dumps(times), file=answers, flush=True)


if __name__ == "__main__":
    main()
