"""What does short training with the masks kept bring back?"""
