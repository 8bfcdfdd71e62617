"""Which part of the change matters, and what undoes it?"""
