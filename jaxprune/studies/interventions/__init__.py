"""What carries the damage, and what undoes it?"""
