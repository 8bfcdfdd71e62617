"""Which steps should fall back to the dense model?"""
