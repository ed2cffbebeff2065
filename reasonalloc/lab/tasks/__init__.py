"""What a model is asked: the generated task "ledger", MATH-500, AIME 2024, or problems of one's own."""

from reasonalloc.lab.tasks.base import Item
from reasonalloc.lab.tasks.ledger import GRID, Dials, Ledger
from reasonalloc.lab.tasks.table import TASKS, items

__all__ = ["GRID", "TASKS", "Dials", "Item", "Ledger", "items"]
