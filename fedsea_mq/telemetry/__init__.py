"""What parties show of themselves: metrics, and traces of requests. Never text, ids or states."""
