"""Do the option tokens move as the whole vocabulary does?"""
