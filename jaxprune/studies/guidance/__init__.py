"""For which tasks may a pruned model still be used?"""
