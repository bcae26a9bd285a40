"""The server's log: one line for each cause of a refusal, without anything secret."""

from __future__ import annotations

import jwt
import pytest
from clients import NativeClient, SseClient, refusal
from configuration import SECRET, token
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer

from semantik_realtime.web.refusals import MAX_CAUSES, RefusalLog


def lines(caplog: pytest.LogCaptureFixture, beginning: str) -> list[str]:
    return [line for line in caplog.messages if line.startswith(beginning)]


async def test_each_wire_logs_once_that_a_credential_is_missing(
    web_server: InProcessServer, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.publish("job:1", 1)
    async with web_server.http_client() as http:
        del http.headers["Authorization"]
        for _ in range(2):
            assert (await refusal(web_server.compat_url("1")))[0] == 1008
            assert (await http.get("/realtime/jobs/1")).status_code == 401
            assert (await http.get("/realtime/jobs/1/events")).status_code == 401
    [line] = lines(caplog, "access: credential refused reason=no credential")
    for place in ("Authorization", "?token=", "cookie access_token", "frame auth"):
        assert place in line


async def test_a_client_that_authenticates_by_its_first_frame_leaves_no_line(
    web_server: InProcessServer, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1", query="") as client:
        await client.send({"op": "auth", "token": token()})
        await client.wait_synced()
    assert not lines(caplog, "access:")


async def test_the_kind_of_a_tokens_fault_is_logged_and_the_token_is_not(
    web_server: InProcessServer, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = {
        "InvalidSignatureError": token().rpartition(".")[0] + ".c2lnbmF0dXJl",
        "MissingRequiredClaimError": jwt.encode({"sub": "7"}, SECRET, "HS256"),
        "InvalidAlgorithmError": jwt.encode({"sub": "7"}, SECRET + SECRET, "HS512"),
    }
    for bad in faulty.values():
        for _ in range(2):
            assert (await refusal(f"{web_server.native_url}?token={bad}"))[0] == 4401
            assert (await refusal(f"{web_server.compat_url('1')}?token={bad}"))[0] == 1008
        async with NativeClient(web_server, query="") as client:
            await client.send({"op": "auth", "token": bad})
            await until(lambda client=client: client.closed)
        async with SseClient(web_server, "job:1", query={"token": bad}, headers={}) as stream:
            assert stream.status == 401
    found = lines(caplog, "access: credential refused")
    assert len(found) == len(faulty)
    for kind, bad in faulty.items():
        assert sum(f"({kind})" in line for line in found) == 1
        assert bad.rpartition(".")[2] not in caplog.text


def test_a_stranger_can_fill_neither_the_log_nor_the_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = RefusalLog("access_token")
    for number in range(10 * MAX_CAUSES):
        log.note_credential(f"cause {number} {'x' * 100_000}")
    assert len(caplog.messages) == MAX_CAUSES
    assert max(map(len, caplog.messages)) < 1000
    assert sum(map(len, log._causes["credential"])) < 1000 * MAX_CAUSES


async def test_the_reason_why_a_topic_is_denied_is_logged_once_for_each(
    web_server: InProcessServer,
    publisher: Publisher,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("semantik_realtime.web.hub.permission.WAIT_SECONDS", 0.2)
    await publisher.publish("job:foreign", 1, owner="8")
    await web_server.rt.publish("job:ownerless", "note", state={"status": "running"})
    reasons = {
        "job:foreign": "it has another owner",
        "job:ownerless": "it has no owner: send the task with the header realtime_owner",
        "job:none": "the backend does not know it",
        "user:8": "it is the feed of another user",
    }
    for _ in range(2):
        async with NativeClient(web_server, *reasons) as client:
            await client.wait_for("denied", len(reasons))
        async with web_server.http_client() as http:
            for topic in reasons:
                path = f"/realtime/jobs/{topic.partition(':')[2]}"
                assert (await http.get(path)).status_code == 404
            stream = await http.get("/realtime/events", params={"topic": list(reasons)})
            assert stream.status_code == 404
        assert (await refusal(f"{web_server.compat_url('foreign')}?token={token()}"))[0] == 1008
    found = lines(caplog, "access: topic denied")
    for topic, reason in reasons.items():
        [line] = [line for line in found if f"topic={topic} " in line]
        assert reason in line
