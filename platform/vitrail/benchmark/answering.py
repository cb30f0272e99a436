"""What the scripts share that are timed in a process of their own: lines of JSON asked for on stdin, given on stdout.

Imported by other Pythons too, from the folder it lies in: nothing but the standard library.
"""

import importlib.machinery
import json
import os
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def answer_requests(prepare: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer requests by what `prepare` returns, until there are no more."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    answer = prepare()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def stand_in_for_operators() -> None:
    """Let mmsegmentation be imported with mmcv-lite, which lacks mmcv's compiled operators."""
    try:
        import mmcv._ext  # noqa: F401
    except ImportError:
        stub = _Missing("mmcv._ext")
        stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = stub


def load_peer_config(name: str) -> Any:
    """One of the files of `configs/vit` that mmsegmentation 1.2 packs with itself."""
    import mmseg
    import mmseg.datasets
    import mmseg.models
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmseg")
    return Config.fromfile(str(Path(mmseg.__file__).parent / ".mim" / "configs" / "vit" / name))


class _Missing(types.ModuleType):
    """Stands in for mmcv's compiled operators while mmseg is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f"mmcv-lite has no operator {name}")

        return refuse
