"""Verdicts on registered versions of tiny weights, which predict nothing: their counts are made up from their mIoU."""

from made_up_evidence import evidence, judged, judged_on, scenes

from vitrail.gate.evidence import Evidence
from vitrail.gate.limits import GateRules
from vitrail.gate.rules import decide
from vitrail.gate.verdict import Verdict
from vitrail.tracking.promotion import Move, promote
from vitrail.tracking.registry import WEIGHTS_TAG, list_models, show

SCENES = scenes()


def verdict_on(
    name: str,
    version: int,
    alias: str = "champion",
    *,
    tracking_uri: str,
    into: str | None = None,
    rules: GateRules | None = None,
) -> Verdict:
    """The gate's verdict on a version against the one that has the alias now; a higher mIoU is a clear gain."""
    models = {model.name: model for model in list_models(tracking_uri=tracking_uri)}
    target = into or name
    current = models[target].aliases.get(alias) if target in models else None
    champion = None if current is None else made_up(target, current, tracking_uri)
    return decide(made_up(name, version, tracking_uri), champion, judged_on(), rules or GateRules())


def made_up(name: str, version: int, tracking_uri: str) -> Evidence:
    found = show(name, version=str(version), tracking_uri=tracking_uri)
    counts = judged(SCENES, skill=20 * float(found.tags["vitrail.mIoU"]) - 10, seed=version)
    return evidence(counts, name=name, version=version, weights_sha256=found.tags[WEIGHTS_TAG])


def give(
    name: str, version: int, alias: str = "champion", *, tracking_uri: str, into: str | None = None, **how: object
) -> Move:
    """Judge a version and promote it."""
    verdict = verdict_on(name, version, alias, tracking_uri=tracking_uri, into=into)
    return promote(verdict, alias, tracking_uri=tracking_uri, into=into, **how)
