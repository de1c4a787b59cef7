"""A compile in steps that any scheduler can run in processes of their own: plan, train, encode shards, commit."""
