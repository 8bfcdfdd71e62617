"""What does pruning an encoder do to retrieval and similarity?"""
