"""A process of simulated clients, for load tests."""
