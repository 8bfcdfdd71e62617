"""What does pruning change at each position and step of a text?"""
