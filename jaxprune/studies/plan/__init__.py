"""How much may be removed from a model for a task, and how?"""
