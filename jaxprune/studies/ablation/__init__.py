"""What does the output lose without each sublayer?"""
