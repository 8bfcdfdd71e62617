"""Which tasks are known by name, and what is asked in each?"""

from jaxprune.evaluation.tasks.items import read as read
from jaxprune.evaluation.tasks.problems import Problem as Problem
from jaxprune.evaluation.tasks.table import TASKS as TASKS
from jaxprune.evaluation.tasks.table import Task as Task
