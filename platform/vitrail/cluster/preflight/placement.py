"""Where workers will go: onto machines that are there, and then onto those that the autoscaler starts for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.cluster.capacity import Machine
from vitrail.strict import Strict


class NodeType(Strict):
    """A kind of machine that the launcher's file lets Ray start."""

    name: str
    resources: dict[str, float]
    max_workers: int


@dataclass(frozen=True)
class Need:
    """What is placed: so many alike, each on one machine."""

    count: int
    cpus: float = 1.0
    gpus: float = 0.0

    def fits_on(self, machine: Machine) -> int:
        """How many of them a machine holds by its resources, if nothing else is on it."""
        places = [int(machine.get("CPU", 0) / self.cpus)] if self.cpus else []
        places += [int(machine.get("GPU", 0) / self.gpus)] if self.gpus else []
        return min(places, default=self.count)


@dataclass(frozen=True)
class Share:
    """What one kind of machine gets."""

    machines: str
    """A machine's name, or that of a type of machines that are to be started."""
    count: int
    on: int
    """Machines that hold them."""
    to_start: bool


@dataclass(frozen=True)
class Placement:
    """Where everything goes that has a place."""

    shares: tuple[Share, ...]
    asked: int

    @property
    def placed(self) -> int:
        """How many have a place."""
        return sum(share.count for share in self.shares)


def node_types(launcher: Mapping[str, Any]) -> list[NodeType]:
    """The kinds of machines, the head's left out; none where the file does not say what they have."""
    most = int(launcher.get("max_workers", 2))
    found = []
    for name, node in launcher.get("available_node_types", {}).items():
        if name == launcher.get("head_node_type"):
            continue
        if not node.get("resources"):
            return []
        places = min(most, int(node.get("max_workers", most)))
        found.append(NodeType(name=name, resources=node["resources"], max_workers=places))
    return found


def place(
    need: Need, alive: Mapping[str, Machine], types: Sequence[NodeType] = (), alive_of: Mapping[str, int] | None = None
) -> Placement:
    """Fill the machines that are alive, those with the most places first, and then start as few as possible.

    Like Ray, keeps what needs no GPU off machines that have one, as long as there are others.

    Args:
        alive: resources by the machine's name.
        alive_of: how many machines of a type are alive already, which count against what it may grow to.
    """
    left, shares = need.count, []
    for name in _in_order({name: (machine, need.fits_on(machine)) for name, machine in alive.items()}, need):
        count = min(left, need.fits_on(alive[name]))
        left -= count
        shares += [Share(name, count, 1, to_start=False)] if count else []
    known = {each.name: each for each in types}
    for name in _in_order({name: (each.resources, need.fits_on(each.resources)) for name, each in known.items()}, need):
        each = need.fits_on(known[name].resources)
        room = max(0, known[name].max_workers - (alive_of or {}).get(name, 0))
        started = min(room, -(-left // each) if each else 0)
        count = min(left, started * each)
        left -= count
        shares += [Share(name, count, started, to_start=True)] if count else []
    return Placement(tuple(shares), need.count)


def _in_order(machines: Mapping[str, tuple[Machine, int]], need: Need) -> Iterable[str]:
    def rank(name: str) -> tuple[bool, int]:
        machine, places = machines[name]
        return bool(machine.get("GPU")) != bool(need.gpus), -places

    return sorted(machines, key=rank)
