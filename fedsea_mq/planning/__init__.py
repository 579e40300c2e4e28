"""What a cut will cost, worked out from sizes and from how fast the machines are. Pure."""
