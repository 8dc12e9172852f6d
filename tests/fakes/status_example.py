"""A status as a daemon with three GPUs sends it: one slot was restarted, one loads new models, a queue is long."""

from __future__ import annotations

from typing import Any

MIB = 1 << 20
GPUS = (
    "GPU-8f3a1c20-5d1e-4c7b-9a44-0c2f6d1b7e35",
    "GPU-2e61b7d4-90ab-4f0e-8c3d-71d5a9e2c480",
    "GPU-c05d9e71-1f2a-4b68-b7e9-3a8c4d6f0152",
)

HUNG = "killed because it hung: a model call took over 30 s (max_execution_time)"
"""Why slot 2 was restarted."""


def _slot(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "slot": number,
        "state": "ready",
        "state_for_s": 266_400.0,
        "pid": 4712 + number,
        "worker_age_s": 266_432.0,
        "device": GPUS[number],
        "restarts": 0,
        "last_restart_age_s": None,
        "last_death_age_s": None,
        "depth": 32,
        "completed": 48_211_904,
        "last_error": None,
        "last_error_age_s": None,
        "step": None,
        "step_for_s": None,
        "replacement": None,
        "batch_ms": {"p50": 7.812, "p99": 11.204},
        "rows_per_s": 3912.4,
        "rss_bytes": 2410 * MIB,
        "cpu_percent": 61.0,
        "devices": [{"memory_bytes": 6144 * MIB, "utilization_percent": 93, "present": True}],
        "towers": [],
        **changed,
    }


def _counts(total: dict[str, int], last_minute: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"total": total, "last_minute": last_minute}


def _model(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": "7",
        "labels": ["stable"],
        "labels_not_served": {},
        "state": "ready",
        "cause": None,
        "slots_ready": 2,
        "slots_total": 3,
        "queue": 0,
        "queue_oldest_s": None,
        "latency_ms": {"p50": 9.3, "p99": 21.7},
        "completed": 90_114_213,
        "failed": 0,
        "errors": _counts({}, {}),
        "refused": _counts({}, {}),
        "batches": 3_011_870,
        "rows": 96_402_118,
        "unbatched_because": None,
        "host_memory_bytes": 812 * MIB,
        "device_memory_bytes": 2210 * MIB,
        **changed,
    }


STATUS: dict[str, Any] = {
    "daemon": {
        "pid": 4711,
        "version": "0.1.0",
        "compiled": True,
        "state": "running",
        "started": "2026-11-28T22:11:20.000Z",
        "uptime_s": 266_440.0,
        "rss_bytes": 64 * MIB,
        "listen": ["ipc:///run/multitower/front.sock", "tcp://127.0.0.1:5555"],
        "spares": [{"pid": 4720, "state": "idle"}],
        "ready": True,
        "slots_ready": 2,
        "slots_total": 3,
        "config": {
            "path": "/etc/multitower/multitower.yaml",
            "last_reload": {"outcome": "applied", "age_s": 5400.0, "cause": None},
        },
        "rejected": 41,
        "refused": _counts({"queue_full": 38, "model_unknown": 3}, {"queue_full": 38, "model_unknown": 1}),
        "late": 2,
        "replies_dropped": 0,
        "gateway": {
            "state": "ready",
            "state_for_s": 266_439.0,
            "cause": None,
            "pid": 4713,
            "http": ["127.0.0.1:8000"],
            "grpc": ["127.0.0.1:8001"],
            "connections": 48,
            "outstanding": 443,
            "requests": 91_318_412,
            "errors": 67,
            "restarts": 0,
            "last_death_age_s": None,
        },
        "events": [
            {
                "seq": 1,
                "kind": "reload",
                "level": "info",
                "time": "2026-12-01T01:46:51.204Z",
                "age_s": 5400.0,
                "message": "reloaded",
            },
            {
                "seq": 2,
                "kind": "death",
                "level": "warning",
                "time": "2026-12-01T03:02:51.204Z",
                "age_s": 840.0,
                "message": "worker died",
                "slot": 1,
                "cause": "killed by SIGSEGV (11)",
                "next": "restart at once",
            },
            {
                "seq": 3,
                "kind": "restart",
                "level": "info",
                "time": "2026-12-01T03:02:55.104Z",
                "age_s": 836.0,
                "message": "worker ready",
                "slot": 1,
                "away_s": 3.9,
            },
            {
                "seq": 4,
                "kind": "death",
                "level": "warning",
                "time": "2026-12-01T03:16:32.204Z",
                "age_s": 19.0,
                "message": "worker died",
                "slot": 2,
                "model": "ranking",
                "version": "7",
                "cause": HUNG,
                "next": "restart at once",
            },
        ],
    },
    "slots": [
        _slot(0),
        _slot(
            1,
            pid=5120,
            state_for_s=836.0,
            worker_age_s=839.0,
            restarts=1,
            last_restart_age_s=840.0,
            last_death_age_s=840.0,
            last_error="killed by SIGSEGV (11)",
            last_error_age_s=840.0,
            depth=31,
            completed=41_870_226,
            batch_ms={"p50": 7.944, "p99": 12.031},
            rows_per_s=3871.0,
        ),
        _slot(
            2,
            state="loading",
            pid=5377,
            state_for_s=17.0,
            worker_age_s=19.0,
            restarts=4,
            last_restart_age_s=19.0,
            last_death_age_s=19.0,
            last_error=HUNG,
            last_error_age_s=19.0,
            step="warming up ranking version 7 with 32 rows",
            step_for_s=6.0,
            depth=0,
            completed=6_310_774,
            batch_ms={"p50": None, "p99": None},
            rows_per_s=0.0,
            rss_bytes=1102 * MIB,
            cpu_percent=100.0,
            devices=[{"memory_bytes": 1520 * MIB, "utilization_percent": 12, "present": True}],
        ),
    ],
    "models": [
        _model(
            "ranking",
            queue=412,
            queue_oldest_s=3.2,
            latency_ms={"p50": 1204.0, "p99": 3310.5},
            failed=29,
            errors=_counts({"deadline": 21, "model_error": 8}, {"deadline": 6}),
            refused=_counts({"queue_full": 38}, {"queue_full": 38}),
        ),
        _model(
            "embeddings",
            labels=[],
            completed=1_204_118,
            batches=401_372,
            rows=1_204_118,
            unbatched_because="the values of output 'norm' depend on other rows",
        ),
    ],
}
