"""Quality of search results: metrics, and the evaluation of an index on a dataset."""
