"""Which modules are mutated, and which tests are asked about each: those of the idea, not all that would meet it by chance."""

STORE = (
    "tests/unit/test_store_decide.py",
    "tests/unit/test_store_decide_again.py",
    "tests/unit/test_store_decide_told.py",
    "tests/unit/test_store_decide_model.py",
    "tests/unit/test_store_groups.py",
)
READS = ("tests/unit/test_store_reads.py", "tests/unit/test_store_sync.py", "tests/unit/test_store_views.py")
ROUTER = ("tests/unit/test_router.py", "tests/unit/test_router_slots.py")
TIMELINES = ("tests/unit/test_client_timelines.py", "tests/unit/test_client_pages.py", "tests/unit/test_client_watermarks.py")

MEMORY = ("tests/unit/test_store_memory.py", "tests/unit/test_store_memory_answers.py", "tests/unit/test_store_memory_reads.py")

TESTS: dict[str, tuple[str, ...]] = {
    "services/store/decide.py": STORE,
    "services/store/actions.py": STORE,
    "services/store/state.py": (*STORE, "tests/unit/test_store_rows.py"),
    "services/store/membership.py": STORE,
    "services/store/loaded.py": (*MEMORY, "tests/unit/test_store_loaded.py"),
    "services/store/memory.py": MEMORY,
    "services/store/seen_keys.py": ("tests/unit/test_store_memory.py",),
    "services/store/rows.py": (*STORE, *READS, "tests/unit/test_store_rows.py", "tests/unit/test_store_memory.py"),
    "services/store/encoding.py": ("tests/unit/test_store_encoding.py", *STORE),
    "services/store/sync.py": READS,
    "services/store/reads.py": READS,
    "services/store/recent.py": (*READS, "tests/unit/test_store_memory.py"),
    "services/router/recipients.py": ROUTER,
    "services/router/slots.py": ROUTER,
    "services/gateway/slots.py": (
        "tests/unit/test_gateway_slots.py",
        "tests/unit/test_gateway_slots_state.py",
        "tests/unit/test_gateway_deliver.py",
    ),
    "services/gateway/acks.py": ("tests/unit/test_gateway_acks.py", "tests/unit/test_gateway_inbound.py"),
    "services/gateway/rates.py": ("tests/unit/test_gateway_rates.py", "tests/unit/test_gateway_inbound.py"),
    "services/gateway/checks.py": ("tests/unit/test_gateway_checks.py", "tests/unit/test_gateway_inbound.py"),
    "services/gateway/grace.py": ("tests/unit/test_gateway_grace.py", "tests/unit/test_gateway_deliver.py"),
    "services/gateway/session.py": (
        "tests/unit/test_gateway_session.py",
        "tests/unit/test_gateway_inbound.py",
        "tests/unit/test_gateway_deliver.py",
    ),
    "libs/parley_protocol/frames.py": ("tests/unit/test_frames.py",),
    "libs/parley_protocol/digests.py": ("tests/unit/test_client_docs.py", "tests/unit/test_store_sync.py"),
    "libs/parley_protocol/slots.py": ("tests/unit/test_slots.py", "tests/unit/test_router_slots.py"),
    "libs/parley_protocol/ids.py": ("tests/unit/test_ids.py", "tests/unit/test_gateway_commands.py", *STORE[:3]),
    "libs/parley_client/timelines.py": TIMELINES,
    "libs/parley_client/conversation_state.py": ("tests/unit/test_client_conversation_state.py", *TIMELINES),
    "libs/parley_client/outbox_state.py": (
        "tests/unit/test_client_outbox.py",
        "tests/unit/test_client_outbox_old.py",
        "tests/unit/test_client_outbox_model.py",
    ),
    "libs/parley_client/ack_state.py": ("tests/unit/test_client_acks.py",),
    "libs/parley_client/reconnect.py": ("tests/unit/test_client_reconnect.py",),
    "libs/parley_checker/judge.py": ("tests/unit/test_contract.py", "tests/unit/test_contract_counts.py"),
    "libs/parley_checker/judge_views.py": ("tests/unit/test_contract.py", "tests/unit/test_contract_views.py"),
}
