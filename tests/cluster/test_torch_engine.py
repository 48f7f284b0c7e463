"""torch.distributed as the engine between real machines on subnets that their owners trust, and elsewhere not."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.machines import Machine, found_hive

TRUSTED = '[training]\ntrusted_subnets = ["127.0.0.0/8"]\n'


def job(epochs: int, **training: object) -> dict[str, Any]:
    return {
        "name": "digits",
        "model": {"source": "zoo:cnn"},
        "data": {"source": "sklearn:digits"},
        "training": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.1, **training},
        "placement": {"strategy": "data_parallel", "min_nodes": 2},
    }


def listening(machine: Machine) -> set[tuple[str, int]]:
    """Where the daemon and all that it has started listen."""
    assert machine.process is not None
    return {
        (connection.laddr.ip, connection.laddr.port)
        for pid in [machine.process.pid, *machine.worker_pids]
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


async def test_a_machine_is_killed_and_the_others_form_the_group_again(tmp_path: Path) -> None:
    hive = await found_hive(tmp_path, extra=TRUSTED)
    try:
        spec = job(30)
        spec["placement"]["min_nodes"] = 3
        submitted = await hive[0].api("POST", "/v1/jobs", {"spec": spec})
        path = f"/v1/jobs/{submitted['summary']['job']}"
        running = await hive[0].until(
            path, lambda d: len([w for w in d["workers"] if w["step"] > 20]) == 3 or d["summary"]["state"] == "failed"
        )
        assert running["plan"]["engine"] == "torch"
        assert "unencrypted, on subnets that all 3 trust" in running["plan"]["engine_reason"]
        await hive[2].kill()
        detail = await hive[0].until(path, lambda d: d["summary"]["state"] in ("finished", "failed"), 90)
        assert detail["summary"]["state"] == "finished", detail["summary"]
        assert [attempt["outcome"] for attempt in detail["attempts"]] == ["finished"]
        assert len(detail["attempts"][0]["members"]) == 2
        assert detail["summary"]["accuracy"] > 0.9
        await hive[1].until("/v1/models", lambda models: bool(models))
        prediction = await hive[1].api("POST", "/v1/models/digits/predict", {"inputs": [[0.0] * 64]})
        assert len(prediction["outputs"][0]) == 10
    finally:
        await asyncio.gather(*(machine.stop() for machine in hive))


async def test_without_trust_nothing_listens_in_plaintext_and_the_plan_says_why(tmp_path: Path) -> None:
    hive = await found_hive(tmp_path, ("ash", "birch"))
    try:
        status, answer = await hive[0].ask("POST", "/v1/plan", {"spec": job(1, engine="torch")})
        assert status == 400
        assert "trusts no subnet (training.trusted_subnets)" in answer["error"]["message"]
        before = [listening(machine) for machine in hive]
        submitted = await hive[0].api("POST", "/v1/jobs", {"spec": job(1000)})
        path = f"/v1/jobs/{submitted['summary']['job']}"
        detail = await hive[0].until(path, lambda d: len([w for w in d["workers"] if w["step"] > 5]) == 2)
        assert detail["plan"]["engine"] == "exchange"
        assert "trusts no subnet (training.trusted_subnets)" in detail["plan"]["engine_reason"]
        new = [listening(machine) - known for machine, known in zip(hive, before, strict=True)]
        assert new[0] | new[1]
        for host, port in new[0] | new[1]:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"\x01" + b"\x00" * 512)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b"", "whoever does not speak TLS is hung up on"
            writer.close()
        await hive[0].api("POST", f"{path}/cancel", {})
        await hive[0].until(path, lambda d: d["summary"]["state"] == "cancelled")
    finally:
        await asyncio.gather(*(machine.stop() for machine in hive))
