"""Facts and a budget become a plan, a plan and a model become an index."""
