"""The folder that a tree of conversations works in.

Layer: tools; no Ray.
"""

from __future__ import annotations

from palaver.providers.messages import Value


class Workspace(Value):
    """A folder, by its absolute path, on the node `node_id` of the cluster; calls of tools that work with
    it run there. `node_id` None means that the path leads to the same folder on every node.
    """

    path: str
    node_id: str | None = None
