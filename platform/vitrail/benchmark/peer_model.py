"""mmsegmentation's models, timed where it is installed: run by another Python, not imported.

    PEER_PYTHON peer_model.py '{"config": "vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py", "side": 512,
                                "device": "cpu", "threads": 2, "amp": false}'

Answers what `answering_models` lists. A training step is the model's `loss` mode and the published optimiser wrapper's
`update_params`, a prediction its `predict` mode, both on images that are normalised already. `amp` is what its `--amp`
does: float16 with a scaled loss. Needs mmsegmentation 1.2, mmengine and mmcv or mmcv-lite.
"""

import copy
import json
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vitrail.benchmark.answering import answer_requests, load_peer_config, stand_in_for_operators
    from vitrail.benchmark.answering_models import ModelAnswers, configure_torch, made_up_labels
else:
    from answering import answer_requests, load_peer_config, stand_in_for_operators
    from answering_models import ModelAnswers, configure_torch, made_up_labels


class PeerModel:
    """The model of one of mmsegmentation's own config files, with random weights."""

    def __init__(self, config: Any, *, side: int, device: str, amp: bool) -> None:
        self.config, self.side, self.device, self.amp = config, side, device, amp

    def build(self, work: str, batch: int) -> Callable[[], object]:
        """A training step or a prediction of `batch` images."""
        from mmengine.model import revert_sync_batchnorm
        from mmseg.registry import MODELS

        config = copy.deepcopy(self.config.model)
        config.pretrained = None
        model = revert_sync_batchnorm(MODELS.build(config)).to(self.device)
        x = torch.randn(batch, 3, self.side, self.side, device=self.device)
        return self._training(model, x) if work == "train" else self._prediction(model, x)

    def _training(self, model: Any, x: torch.Tensor) -> Callable[[], object]:
        from mmengine.optim import build_optim_wrapper

        settings = copy.deepcopy(self.config.optim_wrapper)
        if self.amp:
            settings.type, settings.loss_scale = "AmpOptimWrapper", "dynamic"
        model.train()
        wrapper = build_optim_wrapper(model, settings)
        samples = self._samples(made_up_labels(len(x), self.side, 150).to(self.device))

        def step() -> None:
            with wrapper.optim_context(model):
                losses = model(x, samples, mode="loss")
            wrapper.update_params(model.parse_losses(losses)[0])

        return step

    def _prediction(self, model: Any, x: torch.Tensor) -> Callable[[], object]:
        model.eval()
        samples = self._samples([None] * len(x))

        @torch.no_grad()
        def predict() -> object:
            with torch.autocast(self.device, dtype=torch.float16, enabled=self.amp):
                return model(x, samples, mode="predict")

        return predict

    def _samples(self, labels: Any) -> list[Any]:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        size, samples = (self.side, self.side), []
        for label in labels:
            sample = SegDataSample(metainfo={"img_shape": size, "ori_shape": size, "pad_shape": size})
            if label is not None:
                sample.gt_sem_seg = PixelData(data=label[None])
            samples.append(sample)
        return samples


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What answers requests about the model of the command line."""
    settings = json.loads(sys.argv[1])
    device, amp = settings["device"], settings["amp"]
    configure_torch(device, settings["threads"])
    logging.disable(logging.INFO)  # mmengine tells of every parameter
    stand_in_for_operators()
    model = PeerModel(load_peer_config(settings["config"]), side=settings["side"], device=device, amp=amp)
    import mmcv
    import mmengine
    import mmseg

    versions = {"mmsegmentation": mmseg.__version__, "mmengine": mmengine.__version__, "mmcv": mmcv.__version__}
    return ModelAnswers(model.build, device, torch.float16 if amp else torch.float32, versions=versions)


if __name__ == "__main__":
    answer_requests(prepare)
