"""What does one pruned sublayer change when all else is dense?"""
