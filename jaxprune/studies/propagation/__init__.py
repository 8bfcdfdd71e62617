"""Which sublayer and which step does the change come from?"""
