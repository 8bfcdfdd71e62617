"""What does the output lose without each sublayer, and without sets of them?"""
