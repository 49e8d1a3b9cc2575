from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.doctor.bundle import Censor, known_secrets, log_files, variables, write

SECRET = "pl4nted-s3cret"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"Cookie: coder_session_token={SECRET}; other=1",
        f'{{"Coder-Session-Token": "{SECRET}"}}',
        f"PASSWORD={SECRET}",
        f"export DB_PASSWORD='{SECRET}'",
        f'"client_secret": "{SECRET}",',
        f'{{\\"api_key\\": \\"{SECRET}\\"}}',
        f"https://user:{SECRET}@host/path",
        f"postgres://{SECRET}@host",
        f"http://a:p@{SECRET}@host",
        f"--token={SECRET} --url=x",
        f"my-access-key: {SECRET}",
        f"?coder_session_token={SECRET}&x=1",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
    ],
)
def test_what_looks_like_a_secret_is_left_out(text: str) -> None:
    assert SECRET not in Censor(())(text)


@pytest.mark.parametrize(
    "token",
    [
        "ghp_" + "a1" * 18,
        "github_pat_" + "a1" * 20,
        "glpat-" + "a1" * 10,
        "xoxb-1234567890-abc",
        "AKIA" + "A1" * 8,
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    ],
)
def test_so_are_tokens_of_well_known_kinds(token: str) -> None:
    assert Censor(())(f"here: {token}, there") == "here: ***, there"


def test_the_rest_stays_readable() -> None:
    text = "2026-01-01 [info] agent: connected  url=https://coder.example.com:8443/x  api=2.10  attempt=1\n"
    assert Censor(())(text) == text


@given(secret=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8), around=st.text())
def test_a_known_secret_is_nowhere(secret: str, around: str) -> None:
    assert secret not in Censor([secret])(f"{around} {secret}{around}{secret} {around}")


def test_variables_of_others_are_names_only() -> None:
    environment = {
        "CODER_AGENT_TOKEN": SECRET,
        "CODER_AGENT_HEADER": f"X-Auth={SECRET}",
        "CODER_AGENT_HEADER_COMMAND": f"vault {SECRET}",
        "CODER_AGENT_URL": "https://coder.example.com",
        "HTTPS_PROXY": f"http://me:{SECRET}@proxy:3128",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "MY_THING": SECRET,
    }
    text = variables(environment, Censor(known_secrets(environment, "")))
    assert SECRET not in text
    assert "CODER_AGENT_URL=https://coder.example.com\n" in text
    assert "HTTPS_PROXY=http://***@proxy:3128\n" in text
    assert "MY_THING" in text


def test_only_plain_logs_of_this_user_are_packed_and_an_archive_is_never_replaced(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "private").write_text(SECRET)
    (logs / "coder-agent.log").write_text(f"one\npassword={SECRET}\n")
    (logs / "coder-script-x.log").symlink_to(tmp_path / "private")
    (logs / "other.txt").write_text(SECRET)
    os.mkfifo(logs / "coder-fifo.log")
    found = log_files(logs)
    assert [path.name for path in found] == ["coder-agent.log"]
    archive = tmp_path / "bundle.tar.gz"
    gone = logs / "coder-gone.log"
    names = write(archive, {"a.txt": f"token={SECRET}"}, [*found, gone], Censor(()))
    assert names == ["a.txt", "logs/coder-agent.log", "logs/coder-gone.log.error"]
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as packed:
        for entry in packed:
            content = packed.extractfile(entry)
            assert content is not None
            assert SECRET.encode() not in content.read()
    with pytest.raises(FileExistsError):
        write(archive, {}, [], Censor(()))
