"""A machine whose rates are round numbers, and LLaMA-2-7B's sizes."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from fedsea_mq.load.plan import Link
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.forecast import Demand, Forecaster, Room
from fedsea_mq.planning.machine import Machine
from fedsea_mq.planning.speed import Speed
from fedsea_mq.planning.traffic import Terms
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

LLAMA_2_7B = Architecture.of(
    LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32_000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
)
GB = 10**9


def speed(dtype: str = "fp16", **blocks: float) -> Speed:
    """10 GB/s and 100 GFLOP/s, nothing fixed but what is asked for."""
    rates: dict[str, Any] = {
        "pass_s": 0.0,
        "block_s": 0.0,
        "weight_bytes_per_s": 10 * GB,
        "step_flops_per_s": 100 * GB,
        "kv_bytes_per_s": 10 * GB,
        "chunk_flops_per_s": 100 * GB,
        "attention_flops_per_s": 100 * GB,
    }
    return Speed.model_validate(
        {
            "processor": "test",
            "cores": 1,
            "model": {"dtype": dtype},
            "blocks": rates | blocks,
            "client": {"lm_head_bytes_per_s": 10 * GB, "state_elements_per_s": GB},
            "system": {
                "relay_s": 0.001,
                "token_s": 0.002,
                "open_s": 0.003,
                "client_process_bytes": 500_000_000,
                "trunk_process_bytes": 500_000_000,
            },
        }
    )


def forecaster(
    of: Architecture = LLAMA_2_7B,
    *,
    demand: Demand | None = None,
    link: Link | None = None,
    client: Speed | None = None,
    trunk: Speed | None = None,
    kv_bytes: int = 16 << 30,
) -> Forecaster:
    """Of a request of 100 and 11 tokens without a link, unless others are given."""
    return Forecaster(
        Machine.running(of, client or speed()),
        Machine.running(of, trunk or speed()),
        link or Link(),
        demand or Demand(100, 11),
        Terms(PayloadSpec(WireDtype.FP16, of.hidden), 512, lease_ms=30_000, give_up_ms=60_000),
        Room(kv_bytes, 1024),
    )
