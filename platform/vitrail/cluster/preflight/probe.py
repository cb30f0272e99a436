"""The probe of a dry run, a job on the head: plans what the script would run, asks each machine, and prints facts.

    python -m vitrail.cluster.preflight.probe '{"packages": ["ray"]}' jobs/train.py RECIPE --data s3://BUCKET/DST

It begins nothing, keeps nothing, and takes no CPU or GPU of the cluster, so it has not to wait for other jobs.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from pydantic import TypeAdapter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vitrail.cluster.asked import SweepAsked, TrainingAsked, asked_by
from vitrail.cluster.capacity import CLUSTER_VARIABLE, GRANTED_CPUS_VARIABLE, read_launcher_file
from vitrail.cluster.jobs.request import parsed_arguments
from vitrail.cluster.jobs.server import CLUSTER_LABEL
from vitrail.cluster.preflight.facts import DEMAND_VARIABLE, MARK, Answer, Asked, Facts, MachineFacts, Question
from vitrail.cluster.preflight.machine import answer, mark_in
from vitrail.cluster.preflight.placement import NodeType, node_types
from vitrail.cluster.preflight.plan import run_facts, sweep_facts
from vitrail.cluster.queue.policy import Demand
from vitrail.cluster.runtime import machines, ray_cluster
from vitrail.errors import VitrailError, exit_codes
from vitrail.tracking.store import default_tracking_uri, local_store

_ANSWER_TIMEOUT_S = 45.0
_MOST_ASKED = 32
_TYPE_LABEL = "ray.io/node-group"
_HEAD_RESOURCE = "node:__internal_head__"


def main(context: str, script: str, arguments: Sequence[str]) -> None:
    """Print the facts for a script with its arguments; `context` is a `Question`'s JSON, of what the client knows."""
    parameters = parsed_arguments(Path(script), arguments)
    asked = asked_by(parameters)
    with ray_cluster(), ExitStack() as marks:
        _count_as_the_queue_would()
        question = _question(Question.model_validate_json(context), asked, marks)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        with ThreadPoolExecutor(1) as beside:
            here = beside.submit(answer, question)
            pending = _ask_others(nodes, question)
            planned = _plan(asked, resume=parameters.get("resume"))
            answers = _collect(pending) | {ray.get_runtime_context().get_node_id(): here.result()}
        facts = Facts(
            cluster=next((name for node in nodes if (name := node["Labels"].get(CLUSTER_LABEL))), None),
            machines=tuple(_machines(nodes, answers, asked={*pending.values(), *answers})),
            types=tuple(_types()),
            available={unit: ray.available_resources().get(unit, 0.0) for unit in ("CPU", "GPU")},
            asked=_asked(asked, parameters),
            question=question,
            **planned,
        )
    print(f"\n{MARK}{facts.model_dump_json()}", flush=True)


def _count_as_the_queue_would() -> None:
    """Plan with the CPUs that the job's workers would get from the queue."""
    demand = TypeAdapter(Demand).validate_json(os.environ[DEMAND_VARIABLE])
    os.environ[GRANTED_CPUS_VARIABLE] = str(demand.cpus(machines()))


def _asked(asked: TrainingAsked | SweepAsked | None, parameters: dict[str, Any]) -> Asked | None:
    if asked is None:
        return None
    least = parameters.get("min_workers") or asked.workers
    return Asked(workers=asked.workers, least=least, gpus_per_worker=asked.gpus_per_worker)


def _question(known: Question, asked: TrainingAsked | SweepAsked | None, marks: ExitStack) -> Question:
    """All that machines are asked, with marks in the folders that they should share."""
    if asked is None:
        return known
    tracking_uri = asked.tracking_uri or default_tracking_uri(asked.root)
    named = asked.checkpoints
    checkpoints = str(named or asked.root.resolve())
    found = {}
    for folder in (None if "://" in checkpoints else Path(checkpoints), local_store(tracking_uri)):
        if folder is None:
            continue
        try:
            found[str(folder)] = str(marks.enter_context(mark_in(folder)))
        except OSError:  # the driver's own answer says why
            continue
    return known.model_copy(
        update={
            "data": asked.data or None,
            "tracking_uri": tracking_uri,
            "checkpoints": checkpoints,
            "pretrained": asked.base.pretrained if asked.base else None,
            "marks": found,
        }
    )


def _plan(asked: TrainingAsked | SweepAsked | None, *, resume: Any) -> dict[str, Any]:
    try:
        if isinstance(asked, TrainingAsked):
            return {"run": run_facts(asked.plan(), root=asked.root, resume=bool(resume))}
        if isinstance(asked, SweepAsked):
            return {"sweep": sweep_facts(asked)}
    except (VitrailError, OSError) as error:
        return {"refusal": " ".join(str(error).split())}
    return {}


def _ask_others(nodes: Sequence[dict[str, Any]], question: Question) -> dict[Any, str]:
    """Tasks that answer on every other machine, by what Ray gives for them."""
    own = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0, max_retries=0)(_answer)
    others = [node["NodeID"] for node in _kinds_first(nodes) if node["NodeID"] != own][:_MOST_ASKED]
    return {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(question): node
        for node in others
    }


def _answer(question: Question) -> Answer:
    return answer(question)


def _collect(pending: dict[Any, str]) -> dict[str, Answer]:
    """Answers by machine, of those that come in time."""
    if not pending:
        return {}
    ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_ANSWER_TIMEOUT_S)
    found = {}
    for reference in ready:
        try:
            found[pending[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            print(f"{pending[reference]}: {error}", file=sys.stderr)
    return found


def _kinds_first(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each kind, then the others, so that no kind is left out where there are too many to be asked."""
    seen: set[Any] = set()
    first: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for node in nodes:
        kind = node["Labels"].get(_TYPE_LABEL), node["Resources"].get("CPU"), node["Resources"].get("GPU")
        (others if kind in seen else first).append(node)
        seen.add(kind)
    return first + others


def _machines(
    nodes: Sequence[dict[str, Any]], answers: dict[str, Answer], *, asked: set[str]
) -> Iterator[MachineFacts]:
    counted: dict[str, int] = {}
    for node in nodes:
        head = _HEAD_RESOURCE in node["Resources"]
        kind = node["Labels"].get(_TYPE_LABEL)
        address = "head" if head else " ".join(filter(None, (kind, node["NodeManagerAddress"])))
        counted[address] = counted.get(address, 0) + 1
        yield MachineFacts(
            name=address if counted[address] == 1 else f"{address} #{counted[address]}",
            head=head,
            type=None if head else kind,
            resources={unit: node["Resources"].get(unit, 0.0) for unit in ("CPU", "GPU")},
            answer=answers.get(node["NodeID"]),
            asked=node["NodeID"] in asked,
        )


def _types() -> list[NodeType]:
    path = os.environ.get(CLUSTER_VARIABLE)
    return node_types(read_launcher_file(Path(path).expanduser())) if path else []


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
