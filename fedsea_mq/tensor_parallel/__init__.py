"""A trunk node of several ranks: processes that compute each block together, each its share."""
