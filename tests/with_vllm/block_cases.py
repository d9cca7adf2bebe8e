"""The cases in which the core and vLLM are compared block for block (``block_truth.py``)."""

from __future__ import annotations

from typing import Any

from block_truth import Case

A_STEP_LATER = "vLLM frees what is outside the window of processed tokens: one step later than the core"
CUT = "vLLM cuts prompts at the block boundaries at which it keeps a state"
FULL = {"kind": "full", "block_size": 16}


def window(tokens: int, count: int = 1) -> dict[str, Any]:
    """Describe layers with sliding windows."""
    return {"kind": "sliding_window", "window": tokens, "block_size": 16, "count": count}


ONE_FULL_GROUP = (
    Case("memory short", kv_blocks=90, preempts=50),
    Case("memory ample", kv_blocks=2000),
    Case("long prompts in chunks", kv_blocks=200, prompt=(1, 800), token_budget=64, output=(1, 100), preempts=4),
    Case("blocks of one token", kv_blocks=1600, block_size=1, preempts=50),
    Case("watermark", kv_blocks=120, watermark=0.1, preempts=5),
    Case("watermark of a share of a block", kv_blocks=119, watermark=0.1, preempts=5),
    Case("few seats", max_num_seqs=3, gap=40),
    Case("all at once", kv_blocks=100, gap=0, preempts=50),
    Case("threshold", kv_blocks=120, long_prefill_token_threshold=40, prompt=(1, 500), preempts=200),
    Case(
        "threshold, few tokens",
        kv_blocks=200,
        long_prefill_token_threshold=40,
        prompt=(1, 500),
        token_budget=96,
        preempts=50,
    ),
    Case("threshold, alone", long_prefill_token_threshold=40, prompt=(1, 500), gap=150, requests=40),
    Case("one step ahead", kv_blocks=90, ahead=1, preempts=50),
    Case(
        "one step ahead, threshold",
        kv_blocks=120,
        ahead=1,
        long_prefill_token_threshold=40,
        prompt=(1, 500),
        preempts=200,
    ),
)

BY_PRIORITY = (
    Case("priorities, memory short", kv_blocks=90, priorities=3, preempts=50),
    Case("priorities, memory ample", kv_blocks=2000, priorities=3),
    Case("priorities, all at once", kv_blocks=100, gap=0, priorities=4, preempts=50),
    Case("priorities, all alike", kv_blocks=90, priorities=1, preempts=50),
    Case("priorities, few seats", max_num_seqs=3, gap=40, priorities=5),
    Case("priorities, watermark", kv_blocks=120, watermark=0.1, priorities=3, preempts=5),
    Case(
        "priorities, threshold, few tokens",
        kv_blocks=200,
        long_prefill_token_threshold=40,
        prompt=(1, 500),
        token_budget=96,
        priorities=3,
        preempts=50,
    ),
    Case("priorities, long prompts", kv_blocks=200, prompt=(1, 800), token_budget=64, priorities=3, preempts=4),
    Case("priorities, one step ahead", kv_blocks=90, ahead=1, priorities=3, preempts=50),
    Case("priorities, prefixes", kv_blocks=90, prefix_caching=True, prefixes=4, priorities=3, preempts=50),
    Case(
        "priorities, window",
        (FULL, window(100)),
        kv_blocks=250,
        prompt=(1, 500),
        output=(1, 300),
        priorities=3,
        preempts=30,
    ),
)

LONG: dict[str, Any] = {"prompt": (1, 500), "output": (1, 300)}
STATES = {"kind": "state", "blocks": 1, "count": 3}
CHUNKS = {"kind": "chunked_local", "chunk": 64, "block_size": 16, "count": 3}
SEVERAL_GROUPS = (
    Case("window", (FULL, window(100)), kv_blocks=250, preempts=30, **LONG),
    Case("window, memory ample", (FULL, window(100)), kv_blocks=4000, **LONG),
    Case("windows only", (window(100),), kv_blocks=100, preempts=10, **LONG),
    Case("five windows to one", (FULL, window(64, 5)), kv_blocks=500, preempts=10, **LONG),
    Case("two kinds of windows", (FULL, window(64, 2), window(200)), kv_blocks=500, preempts=15, **LONG),
    Case(
        "windows, small blocks",
        ({"kind": "full", "block_size": 32}, window(100, 2)),
        kv_blocks=250,
        block_size=32,
        preempts=10,
        **LONG,
    ),
    Case(
        "chunks",
        (FULL, CHUNKS),
        kv_blocks=400,
        preempts=10,
        **LONG,
    ),
    Case(
        "windows, threshold",
        (FULL, window(64, 2)),
        kv_blocks=250,
        long_prefill_token_threshold=40,
        preempts=50,
        **LONG,
    ),
    Case("windows, watermark", (FULL, window(64, 2)), kv_blocks=250, watermark=0.1, preempts=1, **LONG),
    Case("states", (FULL, STATES), kv_blocks=200, preempts=30, **LONG),
    Case(
        "windows, one step ahead",
        (FULL, window(64, 2)),
        kv_blocks=250,
        ahead=1,
        differs=A_STEP_LATER,
        apart=200,
        **LONG,
    ),
    Case(
        "aligned states",
        (FULL, STATES | {"aligned": True}),
        kv_blocks=250,
        differs=CUT,
        apart=100,
        **LONG,
    ),
)

TURNS: dict[str, Any] = {"requests": 200, "prompt": (1, 120), "output": (1, 120), "turns": 5, "prefix_caching": True}
PREFIX_CACHING = (
    Case("cached", prefix_caching=True, kv_blocks=90, preempts=40),
    Case("shared prompts", prefix_caching=True, prefixes=4, kv_blocks=90, preempts=40),
    Case("shared prompts, memory ample", prefix_caching=True, prefixes=4, kv_blocks=4000),
    Case("conversations", kv_blocks=150, preempts=20, **TURNS),
    Case("conversations, memory ample", kv_blocks=4000, **TURNS),
    Case("conversations, shared prompts", prefixes=3, kv_blocks=120, preempts=30, **TURNS),
    Case("conversations, threshold", kv_blocks=150, long_prefill_token_threshold=40, preempts=100, **TURNS),
    Case("conversations, watermark", kv_blocks=150, watermark=0.1, **TURNS),
    Case("conversations, few tokens", kv_blocks=150, token_budget=32, preempts=10, **TURNS),
    Case(
        "conversations, one step ahead",
        kv_blocks=150,
        ahead=1,
        differs="vLLM caches a block of output when its last token is known: one step later than the core",
        apart=2,
        **TURNS,
    ),
)

SHARED: dict[str, Any] = {"prefixes": 4, "prefix_caching": True, **LONG}
SEVERAL_GROUPS_CACHED = (
    Case("full and window, shared prompts", (FULL, window(100)), kv_blocks=250, preempts=15, **SHARED),
    Case("full and window, shared prompts, memory ample", (FULL, window(100)), kv_blocks=4000, **SHARED),
    Case("full and window, multi-turn", (FULL, window(100)), kv_blocks=250, preempts=5, **TURNS),
    Case("full and window, multi-turn, memory ample", (FULL, window(100)), kv_blocks=8000, **TURNS),
    Case("full and window, both", (FULL, window(40)), prefixes=3, kv_blocks=200, preempts=5, **TURNS),
    Case("full and window, few tokens", (FULL, window(100)), kv_blocks=250, token_budget=32, preempts=1, **TURNS),
    Case(
        "full and window, threshold",
        (FULL, window(100)),
        kv_blocks=250,
        long_prefill_token_threshold=40,
        preempts=10,
        differs="what prefills and decodes leave in one step vLLM reuses in the order of their admission",
        apart=150,
        **TURNS,
    ),
    Case("full and window, watermark", (FULL, window(100)), kv_blocks=250, watermark=0.1, **TURNS),
    Case("five windows to one, multi-turn", (FULL, window(64, 5)), kv_blocks=500, preempts=5, **TURNS),
    Case("two kinds of windows, multi-turn", (FULL, window(64, 2), window(200)), kv_blocks=500, preempts=5, **TURNS),
    Case("windows only, multi-turn", (window(100),), kv_blocks=100, preempts=5, **TURNS),
    Case(
        "windows of large blocks, multi-turn",
        (FULL, window(100, 2) | {"block_size": 32}),
        kv_blocks=300,
        preempts=5,
        **TURNS,
    ),
    Case("chunks, shared prompts", (FULL, CHUNKS), kv_blocks=400, preempts=5, **SHARED),
    Case("chunks, multi-turn", (FULL, CHUNKS), kv_blocks=400, preempts=2, **TURNS),
    Case(
        "full and window, one step ahead",
        (FULL, window(100)),
        kv_blocks=250,
        ahead=1,
        differs=A_STEP_LATER,
        apart=250,
        **TURNS,
    ),
    Case(
        "aligned states, multi-turn",
        (FULL, STATES | {"aligned": True}),
        kv_blocks=250,
        differs=CUT,
        apart=200,
        **TURNS,
    ),
)

SPECULATION = (
    Case("drafts", draft_tokens=3, kv_blocks=90),
    Case("drafts, memory ample", draft_tokens=3, kv_blocks=2000),
    Case("drafts, many tokens", draft_tokens=3, kv_blocks=90, token_budget=4096, preempts=40),
    Case("drafts, window, many tokens", (FULL, window(100)), draft_tokens=3, kv_blocks=250, token_budget=4096),
    Case("drafts, window", (FULL, window(100)), draft_tokens=3, kv_blocks=250),
    Case(
        "drafts as found",
        draft_tokens=3,
        drafts_vary=True,
        kv_blocks=90,
        differs="where fewer drafts are found than there may be, the core counts the tokens and slots of all",
        apart=40,
    ),
)

CROSS = {"kind": "cross_attention", "block_size": 16}
READS: dict[str, Any] = {"encoder": (0, 400), "token_budget": 8192}
ENCODER_DECODER = (
    Case("cross-attention, memory short", (FULL, CROSS), kv_blocks=150, preempts=30, **READS),
    Case("cross-attention, memory ample", (FULL, CROSS), kv_blocks=2000, **READS),
    Case("cross-attention, all at once", (FULL, CROSS), kv_blocks=150, gap=0, preempts=30, **READS),
    Case("cross-attention, watermark", (FULL, CROSS), kv_blocks=200, watermark=0.1, **READS),
    Case("cross-attention, one step ahead", (FULL, CROSS), kv_blocks=150, ahead=1, preempts=30, **READS),
    Case(
        "cross-attention, blocks of two sizes",
        (FULL, CROSS | {"block_size": 32}),
        kv_blocks=150,
        block_size=32,
        preempts=20,
        **READS,
    ),
)

ALL = {
    "one full group": ONE_FULL_GROUP,
    "by priority": BY_PRIORITY,
    "several groups": SEVERAL_GROUPS,
    "prefix caching": PREFIX_CACHING,
    "prefix caching, several groups": SEVERAL_GROUPS_CACHED,
    "speculation": SPECULATION,
    "encoder and decoder": ENCODER_DECODER,
}
