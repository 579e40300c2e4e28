"""A whole private system in one event loop: broker, trunk node and client.

    .venv/bin/python examples/embed.py

The three parties still speak through real sockets, so any of them can move to another process or
machine without a change to the others.
"""

import asyncio

from broker import Broker
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode

QUESTION = (
    "Kewyn is a weaver. She lives in Marshmoor. Kewyn keeps a striped dog. In spring she bought "
    "twelve combs from Dador. She likes salt herring.\nWhere does Kewyn live?"
)


async def main() -> None:
    # `*` takes free ports; the broker says which.
    ports = ["broker.clients=tcp://127.0.0.1:*", "broker.nodes=tcp://127.0.0.1:*"]
    settings = Settings.load(None, ports)
    async with Broker(settings.broker, settings.security) as broker:
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        async with TrunkNode(settings) as trunk, ClientNode(settings) as client:
            await trunk.registered()
            generation = client.chat(
                [{"role": "user", "content": QUESTION}], SamplingSettings(max_new_tokens=32)
            )
            async for token in generation:
                print(token.text, end="", flush=True)
            stats = generation.stats
            print(f"\n{stats.new_tokens} tokens from {stats.node}, {generation.finish}")


if __name__ == "__main__":
    asyncio.run(main())
