"""Where does the change of the logits come from? Exact, along one path."""
