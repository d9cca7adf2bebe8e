"""Routing to many replicas: what is read of a request, what replicas report, and where requests go; without a
host."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from wait_core import Scheduler, WaitCoreError
from wait_core.fleet import ROUTERS
from wait_core.fleet.dispatcher import Dispatcher
from wait_core.fleet.prompts import Asked, read
from wait_core.fleet.reports import BUSY_NS, IDLE_NS, Reporter

SECOND = 1_000_000_000
REPLICA = {"kv_blocks": 1000, "block_size": 16, "max_num_seqs": 64, "token_budget": 2048}
IDLE = {"free_blocks": 1000}
ASKED = Asked(100, 50)


def said(load: dict[str, Any], at_ns: int = 0, **replica: Any) -> dict[str, Any]:
    """Return what a replica reports, as it arrives: through JSON or a pickle."""
    report = {"replica": REPLICA | replica, "longest": 4096, "load": load, "at_ns": at_ns}
    return dict(json.loads(json.dumps(report)))


def full(at_ns: int = 0, waiting_tokens: int = 40_000) -> dict[str, Any]:
    load = {"waiting": 20, "residents": 60, "kv_tokens": 15_900, "kv_peak": 15_990.0, "mean_output": 2000.0}
    return said(load | {"waiting_tokens": waiting_tokens, "admission_gap_ns": SECOND, "kv_deviation": 100.0}, at_ns)


def sent(dispatcher: Dispatcher, request: str, now_ns: int, asked: Asked = ASKED) -> str | None:
    choice = dispatcher.choose(request, asked, now_ns)
    assert choice is not None
    return choice.replica


# -- what is read of a request


def test_tokens_are_counted_and_texts_estimated() -> None:
    ids = read(SimpleNamespace(prompt=list(range(40)), max_tokens=7))
    assert ids is not None
    assert (ids.prompt_tokens, ids.max_tokens, len(ids.block_hashes)) == (40, 7, 2)
    text = read(SimpleNamespace(prompt="abcd" * 40, max_tokens=None), block_size=8)
    assert text is not None
    assert (text.prompt_tokens, text.max_tokens, len(text.block_hashes)) == (40, None, 5)
    assert read(SimpleNamespace(prompt="a")) == Asked(1)
    assert read(SimpleNamespace(prompt="日本語のテキスト" * 10)) == read(
        SimpleNamespace(prompt="日本語のテキスト" * 10)
    )


def test_prompts_share_what_they_begin_with() -> None:
    first, second = (read(SimpleNamespace(prompt=[7] * 48 + [last] * 16)) for last in (1, 2))
    assert first is not None
    assert second is not None
    assert first.block_hashes[:3] == second.block_hashes[:3]
    assert first.block_hashes[3] != second.block_hashes[3]
    later = read(SimpleNamespace(prompt=[1] * 16 + [7] * 48))
    assert later is not None
    assert not set(later.block_hashes) & set(first.block_hashes), "a block is hashed with everything before it"


def test_chats_parts_and_several_prompts() -> None:
    parts = [{"type": "text", "text": "x" * 200}, {"type": "image_url", "image_url": {"url": "data:..."}}]
    chat = SimpleNamespace(
        messages=[{"role": "system", "content": "y" * 400}, {"role": "user", "content": parts}],
        max_completion_tokens=30,
        max_tokens=None,
    )
    asked = read(chat)
    assert asked is not None
    assert (asked.prompt_tokens, asked.max_tokens) == (153, 30)
    assert read(SimpleNamespace(prompt=[[1] * 10, [2] * 20], max_tokens=5)) == Asked(30, 5)
    assert read(SimpleNamespace(input=["a" * 8, "b" * 4])) == Asked(3)
    for nothing in (None, 3, SimpleNamespace(), SimpleNamespace(prompt="", messages=None)):
        assert read(nothing) is None


# -- what a replica reports


def test_reports_change_seldom_and_say_when_they_were_true() -> None:
    scheduler = Scheduler(kv_blocks=1000)
    for i in range(20):
        scheduler.add(i, 301)
    scheduler.plan()
    load = scheduler.load()
    figures = {"load": load, "iteration_time": None}
    reporter = Reporter(REPLICA, longest=4096)
    first = reporter.report(figures, 5, 7)
    assert first["at_ns"] == 5
    assert first["load"]["residents"] + first["load"]["waiting"] == 20, "small counts are exact"
    assert json.loads(json.dumps(first)) == first
    # A token more a request moves no rounded figure; a request more does.
    nearly = figures | {"load": load | {"kv_tokens": load["kv_tokens"] + 1}}
    assert reporter.report(nearly, BUSY_NS, BUSY_NS) is first
    assert reporter.report(nearly, BUSY_NS + 5, 0)["at_ns"] == BUSY_NS + 5, "too old: reported again"
    more = figures | {"load": load | {"waiting": 25}}
    assert reporter.report(more, BUSY_NS + 6, 0)["load"]["waiting"] == 25


def test_an_idle_replica_repeats_that_it_is() -> None:
    reporter = Reporter(REPLICA)
    figures = {"load": Scheduler(kv_blocks=1000).load(), "iteration_time": {"law": "a100"}}
    first = reporter.report(figures, 3, SECOND)
    assert (first["at_ns"], first["replica"]["iteration_time"]) == (SECOND, {"law": "a100"})
    assert reporter.report(figures, 3, SECOND + IDLE_NS - 1) is first
    assert reporter.report(figures, 3, SECOND + IDLE_NS)["at_ns"] == SECOND + IDLE_NS
    assert "load" not in Reporter(REPLICA).report(None, 0, 5), "missing figures are not invented"


def test_what_is_said_is_what_the_router_takes() -> None:
    scheduler = Scheduler(kv_blocks=1000, iteration_time={"law": "a100"})
    for i in range(200):
        scheduler.add(i, 100)
    for step in range(30):
        scheduler.plan(step * 20_000_000)
        scheduler.complete(finished=[step])
    dispatcher = Dispatcher("forecast")
    figures = {"load": scheduler.load(), "iteration_time": scheduler.settings["iteration_time"]}
    dispatcher.update({"busy": Reporter(REPLICA).report(figures, 1, 1), "idle": said(IDLE, 1)}, 2)
    choice = dispatcher.choose("request", ASKED, 3)
    assert choice is not None
    assert (choice.replica, choice.by) == ("idle", "forecast")


# -- where requests go


@pytest.mark.parametrize("router", ROUTERS)
def test_a_burst_uses_every_replica_and_ends_without_a_trace(router: str) -> None:
    dispatcher = Dispatcher(router)
    dispatcher.update({name: said(IDLE) for name in "abc"}, 0)
    placed = [sent(dispatcher, f"r{i}", 1) for i in range(60)]  # all before any of them is sent
    assert set(placed) == {"a", "b", "c"}
    for i, replica in enumerate(placed):
        dispatcher.ended(f"r{i}", 2, replica=replica)
        assert not dispatcher.knows(f"r{i}")
        assert not dispatcher.router.finished(f"r{i}", 3)


def test_an_uneven_load_is_evened_out() -> None:
    dispatcher = Dispatcher("forecast")
    dispatcher.update({"full": full(), "idle": said(IDLE)}, 0)
    assert [sent(dispatcher, f"r{i}", 1) for i in range(5)] == ["idle"] * 5


def test_what_all_replicas_are_too_full_for_waits_at_the_door_but_not_for_ever() -> None:
    dispatcher = Dispatcher("forecast", longest_hold=20.0)
    dispatcher.update({"a": full(), "b": full()}, 0)
    held = dispatcher.choose("r", Asked(1000), 1)
    assert held is not None
    assert (held.replica, held.hold) == (None, "all-full")
    assert dispatcher.knows("r")
    dispatcher.update({"a": full(10 * SECOND), "b": full(10 * SECOND)}, 10 * SECOND)
    assert sent(dispatcher, "r", 10 * SECOND, Asked(1000)) is None
    assert dispatcher.choose("r", Asked(1000), 21 * SECOND) is None, "held for too long: the host chooses"
    dispatcher.update({"a": full(22 * SECOND), "b": said(IDLE, 22 * SECOND)}, 22 * SECOND)
    assert sent(dispatcher, "other", 22 * SECOND) == "b"
    dispatcher.ended("r", 23 * SECOND)
    assert not dispatcher.knows("r")


def test_late_requests_yield_wait_on_and_are_counted() -> None:
    dispatcher = Dispatcher("forecast", longest_hold=20.0, ttft_target=10.0)
    dispatcher.update({"a": full(waiting_tokens=400)}, 0)
    assert sent(dispatcher, "early", 1) is None
    assert dispatcher.late == 0
    # The host says when one came: while it stood in a queue of the host's it was not asked for.
    first = dispatcher.choose("first", ASKED, 9 * SECOND, arrived_ns=SECOND)
    assert first is not None
    assert first.replica == "a", "one late request may wait in a queue"
    behind = dispatcher.choose("behind", ASKED, 9 * SECOND, arrived_ns=SECOND)
    assert behind is not None
    assert behind.hold == "late"
    dispatcher.update({"a": full(30 * SECOND, waiting_tokens=400)}, 30 * SECOND)
    for request in ("early", "behind"):  # held for longer than `longest_hold`, and still not left to the host
        held = dispatcher.choose(request, ASKED, 30 * SECOND)
        assert held is not None
        assert held.hold == "late"
    assert dispatcher.late == 2
    assert sent(dispatcher, "fresh", 30 * SECOND) is None
    dispatcher.update({"a": said(IDLE, 31 * SECOND)}, 31 * SECOND)
    assert sent(dispatcher, "early", 31 * SECOND) is None, "fresh is in time"
    dispatcher.ended("fresh", 31 * SECOND)  # its client has left
    assert sent(dispatcher, "early", 31 * SECOND) == "a"
    dispatcher.ended("early", 32 * SECOND)
    dispatcher.ended("behind", 32 * SECOND)
    assert dispatcher.late == 0
    assert not any(dispatcher.router.finished(request, 33 * SECOND) for request in ("early", "behind", "fresh"))


def test_one_that_the_host_sends_at_last_delays_no_other() -> None:
    dispatcher = Dispatcher("forecast", longest_hold=0.5, ttft_target=10.0)
    dispatcher.update({"a": full(waiting_tokens=400)}, 0)
    assert sent(dispatcher, "r", 20 * SECOND) is None
    assert dispatcher.choose("r", ASKED, 21 * SECOND) is None, "held for too long: the host chooses"
    dispatcher.moved("r", "a", 21 * SECOND)
    dispatcher.update({"a": said(IDLE, 21 * SECOND)}, 21 * SECOND)
    late = dispatcher.choose("late", ASKED, 21 * SECOND, arrived_ns=SECOND)
    assert late is not None
    assert late.replica == "a", "no request in time is at the door"
    dispatcher.ended("r", 22 * SECOND)
    assert not dispatcher.knows("r")


def test_reports_that_are_stale_for_ever_leave_power_of_two() -> None:
    dispatcher = Dispatcher("forecast", stale_after=30.0)
    dispatcher.update({"a": full(), "b": said(IDLE)}, 0)
    for i in range(100):
        now_ns = (40 + i) * SECOND
        choice = dispatcher.choose(f"r{i}", ASKED, now_ns)
        assert choice is not None
        assert (choice.by, choice.hold) == ("power-of-two", None)
        if i >= 10:
            dispatcher.ended(f"r{i - 10}", now_ns)


def test_replicas_that_say_nothing_or_nonsense_are_used_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = Dispatcher("forecast")
    nonsense = said({"queue": 3})
    silent: dict[str, object] = {"silent": None, "odd": "text", "wrong": nonsense, "torn": {"replica": {}}}
    dispatcher.update(silent, 0)
    assert {sent(dispatcher, f"r{i}", 1) for i in range(40)} == set(silent)
    assert "replica wrong sent an unusable report: " in caplog.text
    assert "replica torn sent" in caplog.text
    said_once = len(caplog.records)
    dispatcher.update(silent | {"wrong": said({"queue": 4})}, 2)
    assert len(caplog.records) == said_once
    # The others are assumed to be like those that have described themselves.
    dispatcher.update(silent | {"new": said(IDLE, 3)}, 3)
    assert dispatcher.block_size == 16
    assert sent(dispatcher, "later", 4) == "new"


def test_a_replica_that_is_gone_is_forgotten_with_its_requests() -> None:
    dispatcher = Dispatcher("least-requests")
    dispatcher.update({"a": said(IDLE), "b": said(IDLE)}, 0)
    placed = {f"r{i}": sent(dispatcher, f"r{i}", 1) for i in range(10)}
    dispatcher.remove("a")
    for request, replica in placed.items():
        assert dispatcher.knows(request) == (replica == "b")
        if replica == "a":  # the host had not sent it yet, and routes it again
            assert sent(dispatcher, request, 2) == "b"
            dispatcher.ended(request, 3, replica="a")  # late news of the first attempt
            assert dispatcher.knows(request)
    dispatcher.update({}, 4)
    held = dispatcher.choose("r", ASKED, 5)
    assert held is not None
    assert held.hold == "no-replica"
    dispatcher.update({"a": said(IDLE, 6)}, 6)  # it is back, with the same name
    assert sent(dispatcher, "r", 7) == "a"


def test_what_another_replica_took_no_longer_counts_where_it_was_to_go() -> None:
    dispatcher = Dispatcher("least-requests")
    dispatcher.update({"a": said(IDLE), "b": said(IDLE)}, 0)
    for i in range(2):
        chosen = sent(dispatcher, f"r{i}", 1)
        dispatcher.moved(f"r{i}", "b", 2)
        assert dispatcher.knows(f"r{i}") == (chosen == "b")
    assert sent(dispatcher, "r2", 3) == "a"


def test_without_a_prompt_the_host_chooses() -> None:
    dispatcher = Dispatcher()
    dispatcher.update({"a": full()}, 0)
    assert dispatcher.choose("r", None, 1) is None
    assert not dispatcher.knows("r")


def test_clocks_ahead_of_ours_hide_nothing_that_was_sent() -> None:
    dispatcher = Dispatcher("vllm")
    dispatcher.update({"a": said(IDLE, 50 * SECOND), "b": said(IDLE, 0)}, SECOND)
    assert {sent(dispatcher, f"r{i}", SECOND + 1 + i) for i in range(2)} == {"a", "b"}


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(WaitCoreError, match='did you mean "power-of-two"'):
        Dispatcher("power-of-to")
    with pytest.raises(WaitCoreError, match="longest_hold = -1"):
        Dispatcher(longest_hold=-1)
    with pytest.raises(WaitCoreError, match="longest_hold = nan"):
        Dispatcher(longest_hold=float("nan"))
    with pytest.raises(WaitCoreError, match="affinity_load"):
        Dispatcher(affinity_load=0.5)
    with pytest.raises(WaitCoreError, match="ttft_target"):
        Dispatcher(ttft_target=-2.0)


def test_ray_is_imported_by_its_own_module_only() -> None:
    program = "import sys; sys.modules['ray'] = None; import wait_core.fleet, wait_core.fleet.dispatcher"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
