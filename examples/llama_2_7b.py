"""LLaMA 2 7B with its trunk on a GPU and the client on the CPU beside it: an answer and its cost.

    hf auth login                                   # the weights are gated
    hf download meta-llama/Llama-2-7b-hf
    .venv/bin/python examples/llama_2_7b.py "The river froze"

The sizes are in configs/llama-2-7b.yaml: the GPU holds 12 GB of weights, and 16 GB of KV cache
unless `--set trunk.kv_memory_mb=...` says less. `fedsea up` and `fedsea generate` with that file do
the same.

Not run with those weights, nor on a GPU: neither was at hand. The test runs it with the embedded
model on a CPU: `--set model.path=embedded --set model.device=cpu --set model.dtype=fp32`.
"""

import argparse
import asyncio
from pathlib import Path

from broker import Broker
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode

CONFIG = Path(__file__).parents[1] / "configs" / "llama-2-7b.yaml"
FREE_PORTS = ["broker.clients=tcp://127.0.0.1:*", "broker.nodes=tcp://127.0.0.1:*"]


async def main(prompt: str, overrides: list[str], new_tokens: int) -> None:
    settings = Settings.load(CONFIG, [*FREE_PORTS, *overrides])
    async with Broker(settings.broker, settings.security) as broker:
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        # Head and tail are a block each: a CPU keeps up with them, and the text stays off the GPU.
        at_client = settings.replace(model={"device": "cpu"})
        async with TrunkNode(settings) as trunk, ClientNode(at_client) as client:
            await trunk.registered()
            weights_gb = trunk.tensor_bytes / 1e9
            print(f"trunk {trunk.name} on {settings.model.device}, {weights_gb:.2f} GB of weights")
            generation = client.generate(prompt, SamplingSettings(max_new_tokens=new_tokens))
            async for token in generation:
                print(token.text, end="", flush=True)
            stats = generation.stats
            up, down = stats.bytes_per_token
            print(f"\n{stats.new_tokens} tokens, sigma {client.noise_std:.4f}")
            print(f"first token {stats.ttft_ms:.0f} ms, then {stats.tpot_ms:.1f} ms a token")
            print(f"{up:.0f} bytes up and {down:.0f} down a token")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="LLaMA 2 7B, split")
    parser.add_argument("prompt")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--new-tokens", type=int, default=128)
    given = parser.parse_args()
    asyncio.run(main(given.prompt, given.set, given.new_tokens))
