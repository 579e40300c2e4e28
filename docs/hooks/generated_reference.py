"""mkdocs hook: the pages of the reference, which are nowhere but in the code."""

from __future__ import annotations

from commands_page import commands_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from settings_page import settings_page

# What a program may rely on: the page, its title, and what it is made of.
_PYTHON = {
    "nodes": (
        "Nodes",
        [
            "nodes.client.ClientNode",
            "nodes.client.Generation",
            "nodes.client.GenerationStats",
            "nodes.client.Completion",
            "nodes.client.Token",
            "nodes.client.Conversation",
            "nodes.trunk.TrunkNode",
            "nodes.aggregator.AggregatorNode",
            "nodes.trainer.TrainingClient",
            "broker.Broker",
        ],
    ),
    "settings": ("Settings and sampling", ["fedsea_mq.settings", "fedsea_mq.model.sampling"]),
    "tasks": (
        "Tasks",
        [
            "fedsea_mq.tasks.task",
            "fedsea_mq.tasks.registry",
            "fedsea_mq.tasks.shards",
            "fedsea_mq.tasks.encoding",
            "fedsea_mq.tasks.evaluation",
        ],
    ),
    "errors": ("Errors", ["fedsea_mq.errors"]),
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages to those that lie in the folder."""
    pages = {"settings": settings_page(), "commands": commands_page()}
    for name, (title, objects) in _PYTHON.items():
        pages[f"python/{name}"] = "\n\n".join([f"# {title}", *(f"::: {one}" for one in objects)])
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
