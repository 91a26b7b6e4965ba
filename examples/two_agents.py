"""A conversation with a sub-conversation, under one budget. Needs no key: the small local model answers."""

import ray

from palaver.actors import Budget, Convo
from palaver.actors.cluster import cluster
from palaver.providers.local import Local

with Local().hold() as model, cluster():
    editor = Convo.remote(model, label="editor", budget=Budget(max_dollars=1, max_responses=10))
    writer = ray.get(editor.sub_convo.remote(label="writer", system_prompt="You write short sentences."))

    draft = ray.get(writer.run.remote("Write one sentence about the sea."))
    verdict = ray.get(editor.run.remote(f"Is this a sentence about the sea? Answer yes or no. {draft.text}"))
    print(draft.text, verdict.text, sep="\n---\n")

    for line in ray.get(editor.tree.remote()).walk():
        print(
            f"{'  ' * line.depth}{line.label}: {line.usage.responses} responses, ${line.usage.total_cost_usd}"
        )
    ray.get(editor.close.remote())
