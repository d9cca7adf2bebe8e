"""Multimodal requests: vLLM cuts their chunks at its encoder's budget and cache, or waits for images that a connector
fetches, and the core keeps up."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

ITEM = 40
"""Tokens of an image."""


def images(name: str, prompt_tokens: int) -> list[Any]:
    """Return as many images as fit the prompt, ten tokens apart; every third is one that others have too."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    found = []
    for i, offset in enumerate(range(5, prompt_tokens - ITEM, ITEM + 10)):
        identifier = f"common-{i}" if i % 3 == 2 else f"{name}-{i}"
        place = PlaceholderRange(offset=offset, length=ITEM)
        found.append(MultiModalFeatureSpec(data=None, modality="image", identifier=identifier, mm_position=place))
    return found


def serve(scheduler: str, policy: str, budget: int, cache: int, **more: Any) -> tuple[dict[str, list[int]], int, Any]:
    """Serve 40 requests, half of them with images; return their tokens, the steps, and the scheduler."""
    from in_process import Driver, Setup, random_prompt
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    driver = Driver(
        Setup(
            scheduler=scheduler,
            wait_core={"policy": policy, "watchdog_s": 0.0} if scheduler == "WaitScheduler" else {},
            num_blocks=121,
            max_model_len=512,
            max_num_seqs=12,
            max_num_batched_tokens=256,
            **more,
        )
    )
    mine = driver.scheduler
    mine.max_num_encoder_input_tokens = budget
    mine.encoder_cache_manager = EncoderCacheManager(cache_size=cache)
    cut = count_cuts(mine)
    if scheduler == "WaitScheduler":
        watch(mine)
    draw = random.Random(0)
    todo = [(f"{i}", random_prompt(draw, draw.randint(20, 250)), draw.randint(1, 60)) for i in range(40)]
    tokens: dict[str, list[int]] = {}
    steps = 0
    while todo or mine.has_requests():
        if todo and steps % 3 == 0:
            name, prompt, most = todo.pop(0)
            driver.add(name, prompt, most, mm_features=images(name, len(prompt)) if int(name) % 2 else None)
        for outputs in (driver.step().outputs or {}).values():
            for output in outputs.outputs:
                tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
        steps += 1
        assert steps < 3_000, mine.get_request_counts()
    driver.step()
    assert len(cut) > 10 or "encoder_connector" in more
    return tokens, steps, mine


def count_cuts(scheduler: Any) -> list[int]:
    """Keep by how many tokens each chunk is cut."""
    stock, cut = scheduler._try_schedule_encoder_inputs, []

    def schedule(request: Any, computed: int, tokens: int, *args: Any, **kwargs: Any) -> Any:
        answer = stock(request, computed, tokens, *args, **kwargs)
        if answer[1] < tokens:
            cut.append(tokens - answer[1])
        return answer

    scheduler._try_schedule_encoder_inputs = schedule
    return cut


def watch(scheduler: Any) -> None:
    """Compare, before each decision, how far the core takes each running request to be with how far it is."""
    bridge = scheduler.wait_core
    decide = bridge._decide

    def compared(now_ns: int) -> None:
        for number, request in bridge._requests.items():
            if request in scheduler.running:
                emitted = request.num_output_tokens + request.num_output_placeholders
                assert bridge.core.stage(number) == emitted, (request.request_id, emitted)
        decide(now_ns)

    bridge._decide = compared


@pytest.mark.parametrize(("budget", "cache"), [(64, 1_000), (1_000, 90), (64, 90)], ids=["budget", "cache", "both"])
@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
def test_chunks_that_the_encoder_cuts(policy: str, budget: int, cache: int) -> None:
    theirs, before, _ = serve("AsyncScheduler", policy, budget, cache)
    tokens, after, mine = serve("WaitScheduler", policy, budget, cache)
    bridge = mine.wait_core
    print(f"{policy}: {before} steps with stock, {after} with ours")
    assert bridge.active, "the core knows before each plan how far every request is"
    assert bridge.counts["foreign"] == bridge.counts["watchdog"] == 0
    assert (len(bridge.core), bridge.core.used_blocks) == (0, 0)
    assert tokens == theirs
    assert after <= 1.1 * before


KINDS: dict[str, dict[str, bool]] = {"stored": {}, "later": {"later": True}, "in vain": {"later": True, "fails": True}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["vllm", "adaptive"])
def test_images_that_an_encoder_connector_fetches(policy: str, kind: str, tmp_path: Path) -> None:
    for i in range(6):  # those that several requests have
        (tmp_path / f"common-{i}").mkdir()
        (tmp_path / f"common-{i}" / "encoder_cache.safetensors").touch()
    connector = {"encoder_connector": KINDS[kind] | {"shared_storage_path": str(tmp_path)}}
    theirs, before, stock = serve("AsyncScheduler", policy, 64, 200, **connector)
    tokens, after, mine = serve("WaitScheduler", policy, 64, 200, **connector)
    bridge, fetched = mine.wait_core, mine.ec_connector
    print(f"{policy}, {kind}: {before} steps with stock, {after} with ours; {fetched.loaded} images loaded")
    assert bridge.active, "the core knows before each plan how far every request is"
    assert bridge.counts["foreign"] == bridge.counts["watchdog"] == 0
    assert (len(bridge.core), bridge.core.used_blocks) == (0, 0)
    assert fetched.loaded > 0
    assert (fetched.waited > 0) == ("later" in KINDS[kind])
    assert fetched.failed == stock.ec_connector.failed
    assert bool(fetched.failed) == ("fails" in KINDS[kind])
    assert tokens == theirs
    assert after <= 1.1 * before
