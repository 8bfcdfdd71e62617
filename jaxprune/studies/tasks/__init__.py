"""What do one or two models score on tasks?"""
