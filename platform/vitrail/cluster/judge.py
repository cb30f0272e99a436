"""Gathering the gate's evidence: candidate and champion on the same validation images, and what each costs.

What a version made of a data set is kept with it, so a champion is evaluated once and then compared with many.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail.cluster.evaluate import evaluate_model
from vitrail.cluster.probe import measure_prediction
from vitrail.cluster.runtime import cpu_share
from vitrail.config import Recipe
from vitrail.data.manifest import Manifest
from vitrail.data.storage import Place
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.trained import open_model
from vitrail.gate.evidence import Evidence, JudgedOn, Lineage, PredictionCost
from vitrail.gate.limits import GateRules
from vitrail.gate.rules import decide
from vitrail.gate.verdict import Verdict
from vitrail.tracking.evaluations import Evaluation, load_evaluation, store_evaluation
from vitrail.tracking.fetch import fetch_model
from vitrail.tracking.promotion import CHAMPION, check_alias
from vitrail.tracking.registry import WEIGHTS_TAG, Version, aliased, show

_SPLIT = "validation"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Which version is to be judged, against which, on which images."""

    candidate: Version
    champion: Version | None
    data: Place
    judged_on: JudgedOn


def open_case(
    name: str,
    version: int,
    alias: str = CHAMPION,
    *,
    tracking_uri: str,
    data: Place | None = None,
    into: str | None = None,
) -> Case:
    """A version against the one that has `alias` of `into` (or of `name`) now, on the validation images of `data`.

    By default these are the images of the data set that the candidate was trained on. Needs no Ray.

    Raises:
        UsageError: unknown names, the version has the alias already, or the data set is not where it was.
    """
    check_alias(alias)
    candidate = show(name, tracking_uri=tracking_uri, version=str(version))
    target = into or name
    current = aliased(target, alias, tracking_uri=tracking_uri)
    champion = None if current is None else show(target, tracking_uri=tracking_uri, version=str(current))
    if champion is not None and champion.tags.get(WEIGHTS_TAG) == candidate.tags.get(WEIGHTS_TAG):
        raise UsageError(f"{name} version {version} is {alias} already")
    place = data or _data_of(candidate)
    manifest = Manifest.load(place)
    judged_on = JudgedOn(
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        images=manifest.split(_SPLIT).num_samples,
        classes=manifest.classes,
    )
    return Case(candidate=candidate, champion=champion, data=place, judged_on=judged_on)


def judge(
    case: Case,
    *,
    root: Path,
    tracking_uri: str,
    rules: GateRules | None = None,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
) -> Verdict:
    """The gate's verdict on a case. Ray must be started; fetched models are kept in `root`.

    A champion that cannot be evaluated, its files being gone, say, fails the rules that are about it.

    Raises:
        UsageError: the candidate's classes are not those of the data set.
        CheckpointError: the candidate's files are missing or changed.
    """
    bench = _Bench(case, root, tracking_uri, workers, gpus_per_worker)
    candidate, champion = bench.evaluation(case.candidate), None
    if case.champion is not None:
        try:
            champion = bench.evaluation(case.champion)
        except (DataError, UsageError) as error:  # a champion that is broken must not stand in the way for ever
            print(f"warning: the champion cannot be evaluated: {error}", file=sys.stderr)
    if case.champion and champion and champion.cost.device != candidate.cost.device:
        # Figures of two machines do not compare.
        candidate = bench.evaluation(case.candidate, cost_anew=True)
        champion = bench.evaluation(case.champion, cost_anew=True)
    before = None if case.champion is None else _evidence(case.champion, champion)
    return decide(_evidence(case.candidate, candidate), before, case.judged_on, rules or GateRules())


class _Bench:
    """Where versions are evaluated, one after the other."""

    def __init__(self, case: Case, root: Path, tracking_uri: str, workers: int, gpus_per_worker: float) -> None:
        self._data, self._fingerprint, self._root = case.data, case.judged_on.fingerprint, root
        self._tracking_uri, self._workers, self._gpus_per_worker = tracking_uri, workers, gpus_per_worker

    def evaluation(self, version: Version, *, cost_anew: bool = False) -> Evaluation:
        """What is kept with the version, or a new one, which is then kept. Its files are verified in any case.

        With `cost_anew`, its cost is measured on this machine.
        """
        segmentor, described = open_model(fetch_model(version.uri, root=self._root, tracking_uri=self._tracking_uri))
        key = _key(version, self._fingerprint, described.recipe)
        try:
            stored = load_evaluation(version, key, tracking_uri=self._tracking_uri)
        except DataError as error:
            print(f"warning: {error}; evaluating it again", file=sys.stderr)
            stored = None
        if stored is not None:
            return replace(stored, cost=self.cost(described.recipe)) if cost_anew else stored
        print(f"evaluating {version.uri} on the validation images of {self._data}", flush=True)
        counts = evaluate_model(
            segmentor,
            described,
            self._data,
            split=_SPLIT,
            workers=self._workers,
            gpus_per_worker=self._gpus_per_worker,
        )
        evaluation = Evaluation(counts, self.cost(described.recipe))
        store_evaluation(version, key, evaluation, tracking_uri=self._tracking_uri)
        return evaluation

    def cost(self, recipe: Recipe) -> PredictionCost:
        """Of predicting on one worker."""
        cpus = cpu_share(1, on_gpu_machines=self._gpus_per_worker > 0)
        return measure_prediction(recipe, cpus=cpus, gpus=self._gpus_per_worker)


def _data_of(candidate: Version) -> str:
    place = candidate.tags.get("vitrail.data_uri")
    if place is None:
        raise UsageError(f"{candidate.uri} does not say where its data set lies; name it with --data")
    return place


def _key(version: Version, fingerprint: str, recipe: Recipe) -> str:
    """Changes with whatever the counts depend on: weights, images, and how the recipe tests its model."""
    tested = {"inference": recipe.inference.model_dump(mode="json"), "scale": recipe.transforms.scale}
    parts = [version.tags.get(WEIGHTS_TAG), fingerprint, _SPLIT, tested]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _evidence(version: Version, evaluation: Evaluation | None) -> Evidence:
    tags = version.tags
    lineage = Lineage(
        recipe=tags.get("vitrail.recipe"),
        recipe_digest=tags.get("vitrail.recipe_digest"),
        data_fingerprint=tags.get("vitrail.data_fingerprint"),
        code=tags.get("vitrail.code"),
        start=tags.get("vitrail.start"),
        weights_sha256=tags.get(WEIGHTS_TAG),
    )
    return Evidence(
        name=version.name,
        version=version.number,
        lineage=lineage,
        counts=evaluation.counts if evaluation else None,
        cost=evaluation.cost if evaluation else None,
    )
