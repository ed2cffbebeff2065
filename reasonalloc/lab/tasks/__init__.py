"""What a model is asked: the generated task "ledger", MATH-500, AIME 2024, or problems of one's own.

Adding a task: one file here with a `TASK`, one entry in `table.REGISTRY`.
"""

from reasonalloc.lab.tasks.base import Item, Task
from reasonalloc.lab.tasks.ledger import GRID, Dials, Ledger
from reasonalloc.lab.tasks.table import REGISTRY, TASKS, items, other_items, prompts

__all__ = ["GRID", "REGISTRY", "TASKS", "Dials", "Item", "Ledger", "Task", "items", "other_items", "prompts"]
