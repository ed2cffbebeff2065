"""Prompts of the tasks on which waves are compared: the registry of `lab.tasks` by its older name."""

from reasonalloc.lab.tasks import REGISTRY as TASKS
from reasonalloc.lab.tasks import prompts

__all__ = ["TASKS", "prompts"]
