"""Many sessions on one compute thread: scheduler, batcher, and the trunk's session rules."""
