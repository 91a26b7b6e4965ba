"""The nodes of a cluster: which one this is, and whether all run the palaver that this program runs.

Conversations and tools travel as pickles between them: of another version they fail in the middle of the
work, and in words that nobody understands.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from palaver.providers.errors import ConfigurationError

_ray = cast("Any", ray)  # which is typed in part

_PACKAGES = ("actors", "providers", "tools")
_ANSWERS_WITHIN_S = 30.0
"""How long a node may take: its first process takes up to two seconds, on a busy machine ten."""


class VersionSkew(ConfigurationError):
    """A node of the cluster has another palaver than this program, or none."""


class Installed(NamedTuple):
    """A palaver that is installed. Empty texts: none is, or one that does not know its code's digest."""

    version: str
    code: str


def installed() -> Installed:
    """What this process runs."""
    return Installed(version("palaver"), _code())


def check_nodes(within_s: float = _ANSWERS_WITHIN_S) -> None:
    """Ask every node of the cluster that this process has joined which palaver it has.

    A node that does not answer in `within_s` seconds, or is lost meanwhile, is passed over. Raises
    VersionSkew, which names the nodes that have another than this process.
    """
    here = installed()
    addresses = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in _ray.nodes() if node["Alive"]}
    asked = {_asked_at(id): address for id, address in addresses.items()}
    ready, _ = _ray.wait(list(asked), num_returns=len(asked), timeout=within_s)
    others: dict[Installed, list[str]] = {}
    for each in ready:
        try:
            there = Installed(*_ray.get(each))
        except RayError:
            continue
        if there != here:
            others.setdefault(there, []).append(asked[each])
    for each in asked:
        if each not in ready:
            _ray.cancel(each, force=True)
    if others:
        raise VersionSkew(told(here, others))


def here() -> NodeAffinitySchedulingStrategy:
    """A `scheduling_strategy`: the node of this process, so that none is lost with another.

    Not `soft`: such an actor was seen to go elsewhere although the node was there (Ray 2.60).
    """
    return NodeAffinitySchedulingStrategy(_ray.get_runtime_context().get_node_id(), soft=False)


def node_names() -> dict[str, str]:
    """What to call each node, by its id: its address, and where several share that a part of the id."""
    addresses = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in _ray.nodes()}
    shared = Counter(addresses.values())
    return {
        id: address if shared[address] == 1 else f"{address}/{id[:4]}" for id, address in addresses.items()
    }


def unmet(actor_options: Mapping[str, Any]) -> str:
    """What of Ray's options for an actor no node of the cluster has; empty when one has all of it."""
    resources: Mapping[str, float] = actor_options.get("resources") or {}
    selected: Mapping[str, str] = actor_options.get("label_selector") or {}
    wanted: dict[str, float | None] = {
        "CPU": actor_options.get("num_cpus"),
        "GPU": actor_options.get("num_gpus"),
        "memory": actor_options.get("memory"),
        **resources,
    }
    amounts = {name: amount for name, amount in wanted.items() if amount}
    # Ray's operators are for Ray to read: "!a", "in(a, b)".
    labels = {name: value for name, value in selected.items() if not value.startswith(("!", "in("))}
    for node in _ray.nodes():
        has: Mapping[str, float] = node["Resources"]
        labelled: Mapping[str, str] = node.get("Labels") or {}
        if (
            node["Alive"]
            and all(has.get(name, 0) >= amount for name, amount in amounts.items())
            and all(labelled.get(name) == value for name, value in labels.items())
        ):
            return ""
    asked = [f"{amount:g} {name}" for name, amount in amounts.items()]
    asked += [f"the label {name}={value}" for name, value in labels.items()]
    return f"no node has {' and '.join(asked)}"


def told(here: Installed, others: dict[Installed, list[str]]) -> str:
    """The error for nodes, by address, that have another palaver than the one here."""
    lines: list[str] = []
    for there, addresses in sorted(others.items()):
        nodes = f"node {addresses[0]} has" if len(addresses) == 1 else f"nodes {', '.join(addresses)} have"
        if not there.version:
            what = "no palaver"
        elif there.version == here.version:
            what = f"palaver {there.version} with other code"
        else:
            what = f"palaver {there.version}"
        lines.append(f"{nodes} {what}")
    return (
        f"{'; '.join(lines)}; here is palaver {here.version}. Install the same wheel on all: `make wheel`, "
        "then `ray up` again (docs/clusters.md)"
    )


def _asked_at(node_id: str) -> Any:
    task = _ray.remote(num_cpus=0, max_retries=0)(_asking())
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()


def _asking() -> Callable[[], tuple[str, str]]:
    # Made in here, so that it travels whole: there may be no palaver to take it from.
    def ask() -> tuple[str, str]:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("palaver")
        except PackageNotFoundError:
            return "", ""
        try:
            from palaver.actors.nodes import installed
        except ImportError:
            return found, ""
        return installed()

    return ask


@cache
def _code() -> str:
    """A digest of the sources: two builds may have one version."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in _PACKAGES:
        folder = root / package
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
