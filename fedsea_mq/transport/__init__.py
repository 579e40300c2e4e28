"""How frames travel: ZeroMQ sockets under asyncio, requests that are sent again, heartbeats."""
