"""Whether any node of a cluster could ever run a call that asks for resources.

Layer: tools; no Ray: the nodes are what `ray.nodes()` tells of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from palaver.tools.tool import Resources


def asked_of(resources: Resources) -> dict[str, float]:
    """What a call asks for, by Ray's names of resources, less what it asks nothing of."""
    by_name = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, "memory": resources.memory}
    return {name: amount for name, amount in {**by_name, **resources.resources}.items() if amount}


def shortfall(resources: Resources, nodes: Iterable[Mapping[str, Any]]) -> str | None:
    """Why a call would wait for ever, for people: what it asks and what there is. None if it fits.

    It fits when one node that is alive has all of it, free at present or not.
    """
    alive = [node for node in nodes if node["Alive"]]
    asked, selectors = asked_of(resources), resources.label_selector
    if any(_fits(node, asked, selectors) for node in alive):
        return None
    most = {name: max((node["Resources"].get(name, 0) for node in alive), default=0) for name in asked}
    worn = {key: sorted({_label(node, key) for node in alive} - {None}, key=str) for key in selectors}
    wants = [*_listed(asked), *(f"label {key}={selector}" for key, selector in selectors.items())]
    has = [*_listed(most), *(f"label {key} in {values}" for key, values in worn.items())]
    return (
        f"it asks for {', '.join(wants)}, and no node of the cluster has that; "
        f"of {len(alive)} nodes the most that one has is {', '.join(has)}"
    )


def _fits(node: Mapping[str, Any], asked: Mapping[str, float], selectors: Mapping[str, str]) -> bool:
    return all(node["Resources"].get(name, 0) >= amount for name, amount in asked.items()) and all(
        _is_selected(_label(node, key), selector) for key, selector in selectors.items()
    )


def _label(node: Mapping[str, Any], key: str) -> str | None:
    return node.get("Labels", {}).get(key)


def _is_selected(label: str | None, selector: str) -> bool:
    """Whether a node's label passes: `value`, `!value`, `in(a, b)`, `!in(a, b)`, as Ray reads these."""
    wanted = selector.removeprefix("!").strip()
    values = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
    return (label in [value.strip() for value in values]) != selector.startswith("!")


def _listed(amounts: Mapping[str, float]) -> list[str]:
    return [f"{amount:g} {name}" for name, amount in amounts.items()]
