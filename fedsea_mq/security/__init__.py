"""Who is who, and what only the two ends of a session read. Sans-I/O but for key files."""
