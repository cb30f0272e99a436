"""Which of several offers are worth a look: those that no other beats in one respect and equals in the other."""

from collections.abc import Mapping


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that none dominates, by their first coordinate; more is better in both coordinates."""
    front: list[str] = []
    best = float("-inf")
    for name in sorted(points, key=lambda name: points[name], reverse=True):
        second = points[name][1]
        if second > best or (front and points[name] == points[front[-1]]):
            front.append(name)
            best = second
    return front[::-1]
